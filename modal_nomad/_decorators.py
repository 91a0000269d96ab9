"""``@app.function()`` and ``@app.cls()``: what makes users' code part of an App."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._entrypoint import called_without_parentheses
from ._function_info import FunctionInfo, check_scheduled, function_info
from ._options import ALIASES, FunctionOptions, apply_aliases, check_object_name, function_options
from .exception import InvalidError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import ParamSpec, Protocol, overload

    from typing_extensions import dataclass_transform

    from ._options import CpuRequest, MemoryRequest
    from ._parameters import parameter
    from .app import App
    from .cloud_bucket_mount import CloudBucketMount
    from .cls import Cls
    from .functions import Function
    from .gpu import GPU
    from .image import Image
    from .mount import Mount
    from .network_file_system import NetworkFileSystem
    from .nomad import Placement
    from .proxy import Proxy
    from .retries import Retries
    from .schedule import Schedule
    from .scheduler_placement import SchedulerPlacement
    from .secret import Secret
    from .volume import Volume

    P = ParamSpec("P")

    class FunctionDecorator(Protocol):
        @overload
        def __call__(self, raw_f: Function[P, R, O]) -> Function[P, R, O]: ...
        @overload
        def __call__(
            self, raw_f: Callable[P, Coroutine[Any, Any, R]]
        ) -> Function[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, raw_f: Callable[P, R]) -> Function[P, R, R]: ...

    class ClassDecorator(Protocol):
        def __call__(self, user_cls: CLS_T) -> CLS_T: ...

else:
    P = TypeVar("P")
    parameter = None

    def dataclass_transform(**settings):
        # For type checkers alone: containers have no typing_extensions.
        return lambda decorator: decorator


R = TypeVar("R")
O = TypeVar("O")  # noqa: E741
CLS_T = TypeVar("CLS_T")


class Decorators:
    """The half of ``App`` that takes functions and classes in."""

    _name: str | None
    _include_source: bool | None
    _volumes: Mapping[str, Volume | CloudBucketMount]
    _functions: dict[str, Function[..., Any]]
    _classes: dict[str, Cls]

    def function(
        self,
        *args: Any,
        image: Image | None = None,
        schedule: Schedule | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        serialized: bool = False,
        cpu: CpuRequest = None,
        memory: MemoryRequest = None,
        ephemeral_disk: int | None = None,
        gpu: GPU | Sequence[GPU] = None,
        retries: int | Retries | None = None,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
        timeout: float | None = None,
        startup_timeout: float | None = None,
        name: str | None = None,
        is_generator: bool | None = None,
        region: str | Sequence[str] | None = None,
        cloud: str | None = None,
        nonpreemptible: bool = False,
        max_inputs: int | None = None,
        single_use_containers: bool = False,
        include_source: bool | None = None,
        mounts: Sequence[Mount] = (),
        volumes: Mapping[Any, Volume | CloudBucketMount] | None = None,
        network_file_systems: Mapping[Any, NetworkFileSystem] | None = None,
        enable_memory_snapshot: bool = False,
        restrict_modal_access: bool = False,
        allow_concurrent_inputs: int | None = None,
        block_network: bool = False,
        i6pn: bool | None = None,
        proxy: Proxy | None = None,
        nomad: Placement | None = None,
        _experimental_scheduler_placement: SchedulerPlacement | None = None,
        **older_names: Any,
    ) -> FunctionDecorator:
        """Make a function one that runs in containers.

        Args:
            image: what its containers have; by default the App's Image, else ``Image.debian_slim()``.
            schedule: when it is called by itself once it is deployed: a ``modal.Cron`` or ``modal.Period``.
            env: environment variables; they win over those of its Secrets.
            secrets: Secrets whose variables its containers have, after those of the App; of two that have
                a variable, the later one's counts.
            serialized: send the function itself, pickled; for functions outside global scope.
            cpu: cores, or a pair (request, limit).
            memory: MiB, or a pair (request, limit).
            ephemeral_disk: MiB.
            gpu: a kind such as ``"A100"``, with ``":2"`` for two of it, a ``modal.gpu`` object, or a list
                of these in order of preference.
            retries: how often a failed input is run again, or a ``modal.Retries``.
            min_containers: containers that are kept even when idle.
            max_containers: the most containers at a time.
            buffer_containers: extra idle containers while it is in use.
            scaledown_window: seconds an idle container lives.
            timeout: seconds one input may run; 300 by default.
            startup_timeout: seconds a container may take to start; by default ``timeout``, and at least
                half an hour where the image has packages to install.
            name: its name in the App; by default the function's own.
            is_generator: whether it yields, where that cannot be seen.
            region: datacenters to run in.
            cloud: run on nodes whose meta says this ``cloud``, such as ``"aws"``; ``"auto"`` is any.
            nonpreemptible: run where Nomad and the cloud let it finish: not on nodes whose meta says
                ``preemptible = "true"``, at a priority that no other job preempts.
            max_inputs: only 1; the older form of ``single_use_containers=True``.
            single_use_containers: end a container after one input.
            include_source: whether the code around the function is sent along; True by default.
            mounts: deprecated: add the files to the image.
            volumes: Volumes by the absolute paths at which its containers see them, besides the App's.
            network_file_systems: NetworkFileSystems by the absolute paths at which its containers see them.
            enable_memory_snapshot: keep what a container has loaded for those that start later.
            restrict_modal_access: its code may call no Functions and use no Dicts, Queues and the like.
            allow_concurrent_inputs: deprecated: use ``@modal.concurrent(max_inputs=...)``.
            block_network: its code reaches no network, but for Functions, Dicts, Volumes and the like.
            i6pn: containers find the address that others reach them at under ``i6pn.modal.local``.
            proxy: a ``modal.Proxy``, whose address its connections come from.
            nomad: where Nomad places its containers, in Nomad's own words: a ``modal.nomad.Placement``.
            _experimental_scheduler_placement: region, zone, kind of nodes: a ``SchedulerPlacement``.
            **older_names: older names of these, which warn; and parameters of Modal that have no effect here.

        Raises:
            InvalidError: when a parameter is not what it may be.

        Example:
            >>> app = App("example")
            >>> @app.function(cpu=2, memory=(512, 1024), retries=3, timeout=600)
            ... def work(x: int) -> int:
            ...     return x
        """
        if args:
            raise InvalidError(called_without_parentheses("function", args[0]))
        options = self._options(
            "@app.function",
            older_names,
            image=image,
            schedule=schedule,
            env=env,
            secrets=secrets,
            serialized=serialized,
            cpu=cpu,
            memory=memory,
            ephemeral_disk=ephemeral_disk,
            gpu=gpu,
            retries=retries,
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
            timeout=timeout,
            startup_timeout=startup_timeout,
            name=name,
            is_generator=is_generator,
            region=region,
            cloud=cloud,
            nonpreemptible=nonpreemptible,
            max_inputs=max_inputs,
            single_use_containers=single_use_containers,
            include_source=include_source,
            mounts=mounts,
            volumes=volumes,
            network_file_systems=network_file_systems,
            enable_memory_snapshot=enable_memory_snapshot,
            restrict_modal_access=restrict_modal_access,
            allow_concurrent_inputs=allow_concurrent_inputs,
            block_network=block_network,
            i6pn=i6pn,
            proxy=proxy,
            nomad=nomad,
            _experimental_scheduler_placement=_experimental_scheduler_placement,
        )
        return cast("FunctionDecorator", lambda raw_f: self._add_function(raw_f, options))

    @dataclass_transform(field_specifiers=(parameter,), kw_only_default=True)
    def cls(
        self,
        *args: Any,
        image: Image | None = None,
        env: Mapping[str, str | None] | None = None,
        secrets: Sequence[Secret] = (),
        serialized: bool = False,
        cpu: CpuRequest = None,
        memory: MemoryRequest = None,
        ephemeral_disk: int | None = None,
        gpu: GPU | Sequence[GPU] = None,
        retries: int | Retries | None = None,
        min_containers: int | None = None,
        max_containers: int | None = None,
        buffer_containers: int | None = None,
        scaledown_window: float | None = None,
        timeout: float | None = None,
        startup_timeout: float | None = None,
        region: str | Sequence[str] | None = None,
        cloud: str | None = None,
        nonpreemptible: bool = False,
        max_inputs: int | None = None,
        single_use_containers: bool = False,
        include_source: bool | None = None,
        mounts: Sequence[Mount] = (),
        volumes: Mapping[Any, Volume | CloudBucketMount] | None = None,
        network_file_systems: Mapping[Any, NetworkFileSystem] | None = None,
        enable_memory_snapshot: bool = False,
        restrict_modal_access: bool = False,
        allow_concurrent_inputs: int | None = None,
        block_network: bool = False,
        i6pn: bool | None = None,
        proxy: Proxy | None = None,
        nomad: Placement | None = None,
        _experimental_scheduler_placement: SchedulerPlacement | None = None,
        **older_names: Any,
    ) -> ClassDecorator:
        """Make a class one whose methods run in containers, which keep its instance between inputs.

        The parameters are those of ``function``; what they say of containers holds for each set of the
        class's own parameters.

        Raises:
            TypeError: on something else than a class.
            InvalidError: when a parameter is not what it may be, or decorators inside contradict each other.

        Example:
            >>> app = App("example")
            >>> @app.cls(serialized=True)
            ... class Greeter:
            ...     greeting: str = modal.parameter(default="Hello")
            ...
            ...     @modal.method()
            ...     def greet(self, name: str) -> str:
            ...         return f"{self.greeting} {name}"
            >>> Greeter(greeting="Hi").greet.local("you")
            'Hi you'
        """
        if args:
            raise InvalidError(called_without_parentheses("cls", args[0]))
        options = self._options(
            "@app.cls",
            older_names,
            image=image,
            env=env,
            secrets=secrets,
            serialized=serialized,
            cpu=cpu,
            memory=memory,
            ephemeral_disk=ephemeral_disk,
            gpu=gpu,
            retries=retries,
            min_containers=min_containers,
            max_containers=max_containers,
            buffer_containers=buffer_containers,
            scaledown_window=scaledown_window,
            timeout=timeout,
            startup_timeout=startup_timeout,
            region=region,
            cloud=cloud,
            nonpreemptible=nonpreemptible,
            max_inputs=max_inputs,
            single_use_containers=single_use_containers,
            include_source=include_source,
            mounts=mounts,
            volumes=volumes,
            network_file_systems=network_file_systems,
            enable_memory_snapshot=enable_memory_snapshot,
            restrict_modal_access=restrict_modal_access,
            allow_concurrent_inputs=allow_concurrent_inputs,
            block_network=block_network,
            i6pn=i6pn,
            proxy=proxy,
            nomad=nomad,
            _experimental_scheduler_placement=_experimental_scheduler_placement,
        )
        return cast("ClassDecorator", lambda user_cls: self._add_class(user_cls, options))

    def _options(self, where: str, older_names: Mapping[str, Any], **given: Any) -> FunctionOptions:
        newer = {name: given.pop(name) for name in set(ALIASES.values())}
        if given["include_source"] is None:
            given["include_source"] = self._include_source
        options = function_options(**given, **apply_aliases(where, newer, older_names))
        if options.network_file_systems:
            from ._volume_mounts import check_apart

            check_apart({**self._volumes, **options.volumes}, options.network_file_systems)
        return options

    def _add_function(self, raw_f: Callable[..., Any], options: FunctionOptions) -> Function[..., Any]:
        from ._partial_function import function_of
        from .functions import Function

        raw_f, options = function_of(raw_f, options)
        if isinstance(raw_f, Function):
            raise InvalidError(
                f"{raw_f.tag} is a Function already: decorate the plain function once for each App, or take "
                "it over with app.include(other_app)"
            )
        info = function_info(
            raw_f, name=options.name, serialized=options.serialized, is_generator=options.is_generator
        )
        if info.is_generator and options.retries is not None:
            raise InvalidError(f"Generator function {info.name} cannot have retries; leave out retries=")
        if options.schedule is not None:
            check_scheduled(info)
        check_object_name("Function", info.name)
        function = Function._local(cast("App", self), raw_f, options, info)
        old = self._functions.get(info.name)
        if old is not None and not same_place(old.info, info):
            warnings.warn(
                f"App {self._name!r} has two functions named {info.name!r}, of modules "
                f"{old.info.raw_f.__module__} and {raw_f.__module__}; the later one counts: give one name=",
                stacklevel=3,
            )
        if info.name in self._classes:
            raise InvalidError(f"App {self._name!r} has a class named {info.name}; give the function name=")
        self._functions[info.name] = function
        return function

    def _add_class(self, target: Any, options: FunctionOptions) -> Cls:
        from .cls import local_class

        made = local_class(cast("App", self), target, options)
        service, name = made._service, made._name
        check_object_name("class", name)
        if name in self._functions:
            raise InvalidError(f"App {self._name!r} has a function named {name}; rename the class")
        old = self._functions.get(service.info.name)
        if old is not None and not same_place(old.info, service.info):
            warnings.warn(
                f"App {self._name!r} has two classes named {name!r}, of modules {old.info.raw_f.__module__} "
                f"and {service.info.raw_f.__module__}; the later one counts: rename one",
                stacklevel=3,
            )
        self._functions[service.info.name] = service
        self._classes[name] = made
        return made


def same_place(one: FunctionInfo, other: FunctionInfo) -> bool:
    """Say whether two functions are one definition, run again (a notebook's cell, a reload)."""
    return (one.raw_f.__module__, one.qualname) == (other.raw_f.__module__, other.qualname)
