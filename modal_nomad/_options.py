"""The parameters of ``app.function``: old names, checks, and the frozen result."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._other_options import other_options
from .exception import DeprecationError, InvalidError
from .retries import Retries
from .wire.placement import PlacementSpec, SchedulerSpec
from .wire.spec import GPUOption, RetrySpec, ScheduleSpec, WebSpec

if TYPE_CHECKING:
    from .cloud_bucket_mount import CloudBucketMount
    from .gpu import GPU
    from .image import Image
    from .mount import Mount
    from .network_file_system import NetworkFileSystem
    from .nomad import Placement
    from .proxy import Proxy
    from .schedule import Schedule
    from .scheduler_placement import SchedulerPlacement
    from .secret import Secret
    from .volume import Volume

    CpuRequest = float | tuple[float, float] | None
    MemoryRequest = int | tuple[int, int] | None

# Every old name that is still taken, and the one to use now.
ALIASES: Mapping[str, str] = {
    "keep_warm": "min_containers",
    "concurrency_limit": "max_containers",
    "container_idle_timeout": "scaledown_window",
    "_experimental_buffer_containers": "buffer_containers",
}

DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_SCALEDOWN_SECONDS = 60.0
_LIBRARY_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep


def warn_deprecated(message: str, category: type[Warning] = DeprecationError) -> None:
    """Warn about an old form, pointing at the user's line and not at one of the library's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY_FOLDER):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def apply_aliases(where: str, current: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Move the values of old parameter names to the new ones, each with a warning.

    Args:
        where: what was called, for the messages, as ``@app.function``.
        current: parameters by their new names; None means not given.
        old: parameters by other names.

    Raises:
        TypeError: for a name that never was a parameter.
        InvalidError: when old and new name are both given.
    """
    result = dict(current)
    for name, value in other_options(old).items():
        new = ALIASES.get(name)
        if new is None:
            raise TypeError(f"{where} has no parameter {name!r}")
        if value is None:
            continue
        if result.get(new) is not None:
            raise InvalidError(f"{where} got both {name!r} and its newer name {new!r}; keep {new!r}")
        warn_deprecated(f"{name!r} of {where} is now called {new!r}")
        result[new] = value
    return result


@dataclass(frozen=True)
class FunctionOptions:
    """What was asked of ``app.function``, checked. The fields are as in ``wire.spec.FunctionSpec``."""

    image: Image | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    serialized: bool = False
    cpu: tuple[float | None, float | None] = (None, None)
    memory: tuple[int | None, int | None] = (None, None)
    ephemeral_disk: int | None = None
    gpu: tuple[GPUOption, ...] = ()
    retries: RetrySpec | None = None
    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = DEFAULT_SCALEDOWN_SECONDS
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    startup_timeout: float | None = None
    name: str | None = None
    is_generator: bool | None = None
    region: tuple[str, ...] = ()
    cloud: str = ""
    nonpreemptible: bool = False
    scheduler: SchedulerSpec | None = None
    nomad: PlacementSpec | None = None
    proxy: Proxy | None = None
    block_network: bool = False
    i6pn: bool = False
    single_use_containers: bool = False
    include_source: bool = True
    secrets: tuple[Secret, ...] = ()
    mounts: tuple[Mount, ...] = ()
    volumes: Mapping[str, Volume | CloudBucketMount] = field(default_factory=dict)
    network_file_systems: Mapping[str, NetworkFileSystem] = field(default_factory=dict)
    enable_memory_snapshot: bool = False
    restrict_modal_access: bool = False
    max_concurrent_inputs: int = 1
    target_concurrent_inputs: int | None = None
    batch_max_size: int | None = None
    batch_wait_ms: int = 0
    schedule: ScheduleSpec | None = None
    web: WebSpec | None = None


def _is_number(value: Any) -> bool:
    # Neither infinite nor what is no number at all.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and float("-inf") < value < float("inf")


def _count(name: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidError(f"{name} is {value!r}; give a whole number of at least {least}")
    return value


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or value <= 0:
        raise InvalidError(f"{name} is {value!r}; give a number of seconds above 0")
    return float(value)


def _request_and_limit(name: str, unit: str, value: Any, whole: bool) -> tuple[Any, Any]:
    if value is None:
        return None, None
    pair = value if isinstance(value, (tuple, list)) else (value, None)
    if len(pair) != 2:
        raise InvalidError(f"{name} is {value!r}; give {unit}, or a pair (request, limit)")
    for part in pair:
        wrong = not _is_number(part) or part <= 0 or (whole and not isinstance(part, int))
        if part is not None and wrong:
            kind = "a whole number" if whole else "a number"
            raise InvalidError(f"{name} is {value!r}; give {unit} as {kind} above 0")
    request, limit = pair
    if request is None:
        raise InvalidError(f"{name} is {value!r}; the request of (request, limit) must be given")
    if limit is not None and limit < request:
        raise InvalidError(f"{name}: the limit {limit} is lower than the request {request}")
    return (request, limit) if whole else (float(request), None if limit is None else float(limit))


def _retry_spec(value: Any) -> RetrySpec | None:
    if value is None:
        return None
    if isinstance(value, Retries):
        return value._spec
    if isinstance(value, int) and not isinstance(value, bool):
        return Retries(max_retries=value, backoff_coefficient=1.0)._spec
    raise InvalidError(f"retries is {value!r}; give a whole number or modal.Retries(...)")


def check_env(where: str, env: Any) -> dict[str, str]:
    """Return environment variables as plain strings; a value of None drops the name.

    Raises:
        InvalidError: when a name or a value is no string.
    """
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise InvalidError(f"{where} is {env!r}; give a dict of strings")
    for key, value in env.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise InvalidError(f"{where} has the name {key!r}; give a non-empty string without '='")
        if value is not None and not isinstance(value, str):
            raise InvalidError(f"{where} has {key}={value!r}; give a string, as str({value!r})")
    return {key: value for key, value in env.items() if value is not None}


def _regions(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else (None,)
    if not all(isinstance(x, str) and x for x in found):
        raise InvalidError(f"region is {value!r}; give a name or a list of names")
    return found


def _cloud(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip():
        raise InvalidError(f"cloud is {value!r}; give the name that nodes have as meta.cloud, such as 'aws'")
    # "auto" leaves the choice to the scheduler, which has it anyway.
    return "" if value.lower() == "auto" else value.lower()


def _placement(value: Any) -> PlacementSpec | None:
    if value is None:
        return None
    from .nomad import placement_spec

    return placement_spec(value)


def _proxy(value: Any) -> Proxy | None:
    if value is None:
        return None
    from .proxy import Proxy

    if not isinstance(value, Proxy):
        raise InvalidError(f"proxy is {value!r}; give a modal.Proxy.from_name(...)")
    return value


def _scheduler(value: Any, region: Any) -> tuple[tuple[str, ...], SchedulerSpec | None]:
    if value is None:
        return (), None
    from .scheduler_placement import scheduler_spec

    return scheduler_spec(value, region)


def _gpu(value: Any) -> tuple[GPUOption, ...]:
    if value is None or value is False:
        return ()
    from .gpu import gpu_options

    return gpu_options(value)


def mounted_volumes(value: Any) -> dict[str, Volume | CloudBucketMount]:
    """Return Volumes by the paths that they are shown at. Raises InvalidError."""
    if value is None or value == {}:
        # A container that has none pays for none.
        return {}
    from ._volume_mounts import check_volumes

    return check_volumes(value)


def _network_file_systems(value: Any) -> dict[str, NetworkFileSystem]:
    if value is None or value == {}:
        # A container that has none pays for none.
        return {}
    from ._volume_mounts import check_network_file_systems

    return check_network_file_systems(value)


def mounts_of(where: str, value: Any) -> tuple[Mount, ...]:
    """Return what was given as ``mounts=``. Raises InvalidError."""
    if value is None or value == () or value == []:
        # A container that has none pays for none.
        return ()
    from .mount import check_mounts

    return check_mounts(where, value)


def _secrets(value: Any, where: str = "a Function") -> tuple[Secret, ...]:
    if not value and isinstance(value, (list, tuple, type(None))):
        # A container that has none pays for none.
        return ()
    from .secret import check_secrets

    return check_secrets(where, value)


def app_secrets(value: Any) -> tuple[Secret, ...]:
    """Return the Secrets of an App. Raises InvalidError."""
    return _secrets(value, "an App")


def _schedule(value: Any) -> ScheduleSpec | None:
    if value is None:
        return None
    from .schedule import schedule_spec

    return schedule_spec(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(f"{name} is {value!r}; give True or False")
    return value


def function_options(
    *,
    image: Image | None = None,
    env: Mapping[str, str | None] | None = None,
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
    secrets: Sequence[Secret] = (),
    mounts: Sequence[Mount] = (),
    volumes: Mapping[Any, Volume | CloudBucketMount] | None = None,
    network_file_systems: Mapping[Any, NetworkFileSystem] | None = None,
    enable_memory_snapshot: bool = False,
    restrict_modal_access: bool = False,
    allow_concurrent_inputs: int | None = None,
    schedule: Schedule | None = None,
    block_network: bool = False,
    i6pn: bool | None = None,
    proxy: Proxy | None = None,
    nomad: Placement | None = None,
    _experimental_scheduler_placement: SchedulerPlacement | None = None,
) -> FunctionOptions:
    """Check the parameters of a Function, by their newer names.

    Raises:
        InvalidError: naming the parameter, what it was, and what it may be.
    """
    from .image import Image

    if image is not None and not isinstance(image, Image):
        raise InvalidError(f"image is {image!r}; give a modal.Image")
    if max_inputs is not None:
        if isinstance(max_inputs, bool) or max_inputs != 1:
            raise InvalidError(
                f"max_inputs is {max_inputs!r}; only 1 is possible, as single_use_containers=True"
            )
        warn_deprecated("'max_inputs=1' of @app.function is now called 'single_use_containers=True'")
        single_use_containers = True
    floor = _count("min_containers", min_containers, 0) or 0
    ceiling = _count("max_containers", max_containers, 1)
    if ceiling is not None and floor > ceiling:
        raise InvalidError(f"min_containers ({floor}) cannot be higher than max_containers ({ceiling})")
    if name is not None:
        check_object_name("Function", name)
    if is_generator is not None:
        _flag("is_generator", is_generator)
    for beside, given in (("proxy=", proxy), ("i6pn=True", i6pn)):
        if block_network and given:
            raise InvalidError(
                f"block_network=True and {beside} contradict each other: what reaches nothing has no address"
            )
    of_scheduler, scheduler = _scheduler(_experimental_scheduler_placement, region)
    return FunctionOptions(
        image=image,
        env=check_env("env", env),
        serialized=_flag("serialized", serialized),
        cpu=_request_and_limit("cpu", "cores", cpu, whole=False),
        memory=_request_and_limit("memory", "MiB", memory, whole=True),
        ephemeral_disk=_count("ephemeral_disk", ephemeral_disk, 1),
        gpu=_gpu(gpu),
        retries=_retry_spec(retries),
        min_containers=floor,
        max_containers=ceiling,
        buffer_containers=_count("buffer_containers", buffer_containers, 0) or 0,
        scaledown_window=_seconds("scaledown_window", scaledown_window) or DEFAULT_SCALEDOWN_SECONDS,
        timeout=_seconds("timeout", timeout) or DEFAULT_TIMEOUT_SECONDS,
        startup_timeout=_seconds("startup_timeout", startup_timeout),
        name=name,
        is_generator=is_generator,
        region=_regions(region) or of_scheduler,
        cloud=_cloud(cloud),
        nonpreemptible=_flag("nonpreemptible", nonpreemptible),
        scheduler=scheduler,
        nomad=_placement(nomad),
        proxy=_proxy(proxy),
        block_network=_flag("block_network", block_network),
        i6pn=False if i6pn is None else _flag("i6pn", i6pn),
        single_use_containers=_flag("single_use_containers", single_use_containers),
        include_source=True if include_source is None else _flag("include_source", include_source),
        secrets=_secrets(secrets),
        mounts=mounts_of("a Function", mounts),
        volumes=mounted_volumes(volumes),
        network_file_systems=_network_file_systems(network_file_systems),
        enable_memory_snapshot=_flag("enable_memory_snapshot", enable_memory_snapshot),
        restrict_modal_access=_flag("restrict_modal_access", restrict_modal_access),
        max_concurrent_inputs=_old_concurrency(allow_concurrent_inputs),
        schedule=_schedule(schedule),
    )


def _old_concurrency(value: Any) -> int:
    if value is None:
        return 1
    warn_deprecated(
        "'allow_concurrent_inputs' is now @modal.concurrent(max_inputs=...) or .with_concurrency(...)"
    )
    return _count("allow_concurrent_inputs", value, 1) or 1


def name_of(where: str, kind: str, name: Any, tag: Any) -> str:
    """Return the name in an App that was asked for; its older parameter ``tag`` warns.

    Args:
        where: what was called, for the messages.
        kind: what is looked for, for the messages: ``Function`` or ``class``.
        name: the parameter ``name``.
        tag: the parameter ``tag``.

    Raises:
        InvalidError: when neither is a name.
    """
    if tag is not None:
        warn_deprecated(f"'tag' of {where} is now called 'name'")
        name = name or tag
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{where} needs the name of a {kind}")
    return name


MAX_NAME_LENGTH = 64
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def check_object_name(kind: str, name: Any) -> str:
    """Return a name that objects of the server may have.

    Raises:
        InvalidError: when it has other characters, is too long, or looks like an app id.
    """
    looks_like_id = isinstance(name, str) and name[:3] == "ap-" and len(name) == 25 and name[3:].isalnum()
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME_LENGTH
        or not _NAME_CHARACTERS.issuperset(name)
        or looks_like_id
    ):
        raise InvalidError(
            f"Invalid {kind} name {name!r}; use at most {MAX_NAME_LENGTH} letters, digits, '-', '_' and '.', "
            "and nothing of the form of an app id"
        )
    return name
