"""Apps: groups of Functions that run, and are deployed, together."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ._bridge import blocking, blocking_context, blocking_function, io
from ._decorators import Decorators, same_place
from ._entrypoint import LocalEntrypoint, called_without_parentheses
from ._execution_context import current_input_id
from ._function_info import function_info
from ._log import logger
from ._options import (
    app_secrets,
    check_object_name,
    mounted_volumes,
    mounts_of,
    warn_deprecated,
)
from .config import config, in_container
from .exception import ClientClosed, ConnectionError, InvalidError

if TYPE_CHECKING:
    from typing import ParamSpec, Protocol

    from .client import Client
    from .cloud_bucket_mount import CloudBucketMount
    from .cls import Cls
    from .functions import Function
    from .image import Image
    from .mount import Mount
    from .secret import Secret
    from .volume import Volume

    P = ParamSpec("P")

    class ClassDecorator(Protocol):
        def __call__(self, user_cls: CLS_T) -> CLS_T: ...

else:
    P = TypeVar("P")
R = TypeVar("R")
CLS_T = TypeVar("CLS_T")


class App(Decorators):
    """A group of Functions that are run or deployed together.

    Args:
        name: the name to deploy under.
        image: the Image of Functions that do not give one.
        mounts: Mounts of all its Functions. Deprecated: add the files to the image.
        secrets: Secrets of all its Functions, before those of their own.
        volumes: Volumes of all its Functions, by the absolute paths at which containers see them.
        include_source: whether the code around its Functions is sent along, where they do not say.

    Raises:
        InvalidError: when a parameter is not what it may be.

    Example:
        >>> app = App("example")
        >>> @app.function()
        ... def square(x: int) -> int:
        ...     return x * x
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        image: Image | None = None,
        mounts: Sequence[Mount] = (),
        secrets: Sequence[Secret] = (),
        volumes: Mapping[Any, Volume | CloudBucketMount] | None = None,
        include_source: bool = True,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"Invalid App name {name!r}: Must be string")
        self._mounts = mounts_of("App", mounts)
        self._secrets = app_secrets(secrets)
        self._volumes = mounted_volumes(volumes)
        if not isinstance(include_source, bool):
            raise InvalidError(f"include_source is {include_source!r}; give True or False")
        self._include_source = include_source
        self._name = name
        self._description = name
        self._image: Image | None = None
        self.image = image
        self._functions: dict[str, Function[..., Any]] = {}
        self._classes: dict[str, Cls] = {}
        self._entrypoints: dict[str, LocalEntrypoint[..., Any]] = {}
        self._app_id: str | None = None
        self._client: Client | None = None
        self._running = False
        self._interactive = False

    def __repr__(self) -> str:
        return f"App({self._name!r})" if self._name else "App()"

    @property
    def name(self) -> str | None:
        """The name given by the user."""
        return self._name

    @property
    def is_interactive(self) -> bool:
        """Whether the App runs interactively now."""
        return self._interactive

    @property
    def app_id(self) -> str | None:
        """The id of the run or deployment; it is kept when a run has ended."""
        return self._app_id

    @property
    def description(self) -> str | None:
        """The name, else what `set_description` said, else the command line's words."""
        if self._description:
            return self._description
        words = [os.path.basename(sys.argv[0]), *sys.argv[1:]] if sys.argv and sys.argv[0] else []
        return " ".join(words) or None

    def set_description(self, description: str) -> None:
        """Set the text that lists show for an App without a name.

        Example:
            >>> unnamed = App()
            >>> unnamed.set_description("an experiment")
            >>> unnamed.description
            'an experiment'
        """
        self._description = description

    @property
    def image(self) -> Image | None:
        """The Image of Functions that do not give one."""
        return self._image

    @image.setter
    def image(self, value: Image | None) -> None:
        from .image import Image

        if value is not None and not isinstance(value, Image):
            raise InvalidError(f"image is {value!r}; give a modal.Image")
        self._image = value

    @property
    def registered_functions(self) -> dict[str, Function[..., Any]]:
        """The App's Functions by their names."""
        return dict(self._functions)

    @property
    def registered_classes(self) -> dict[str, Cls]:
        """The App's classes by their names."""
        return dict(self._classes)

    @property
    def registered_entrypoints(self) -> dict[str, LocalEntrypoint[..., Any]]:
        """The App's local entry points by their names."""
        return dict(self._entrypoints)

    @property
    def registered_web_endpoints(self) -> list[str]:
        """The names of what answers web requests, functions and ``Class.method``, in order of definition."""
        found = []
        for name, function in self._functions.items():
            if function._web() is not None:
                found.append(name)
            made = self._classes.get(name[:-2]) if name.endswith(".*") else None
            if made is not None and made._info is not None:
                found += [
                    f"{name[:-2]}.{key}"
                    for key, partial in made._info.methods.items()
                    if partial.settings.web is not None
                ]
        return found

    @property
    def indexed_objects(self) -> dict[str, Any]:
        """All of the App's objects by their names."""
        return {**self._functions, **self._classes}

    def __getitem__(self, tag: str) -> Any:
        return self._functions[tag] if tag in self._functions else self._classes[tag]

    def __contains__(self, tag: object) -> bool:
        return tag in self._functions or tag in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __bool__(self) -> bool:
        # An App without objects is still an App.
        return True

    @staticmethod
    @blocking_function
    async def lookup(
        name: str = "",
        client: Client | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        *,
        label: str | None = None,
    ) -> App:
        """Find a deployed App by its name.

        Args:
            name: the name.
            client: the client to use.
            environment_name: the environment to look in.
            create_if_missing: make a deployed App without Functions when there is none.
            label: the older name of ``name``.

        Raises:
            NotFoundError: when there is none.
            InvalidError: when no App can have that name.

        Example:
            >>> App.lookup("for-sandboxes", create_if_missing=True).name
            'for-sandboxes'
        """
        from . import runner

        if label is not None:
            warn_deprecated("'label' of App.lookup is now called 'name'")
            name = name or label
        check_object_name("App", name)
        client = client or await runner._default_client()
        request = {
            "name": name,
            "environment": runner.environment_of(environment_name),
            "create_if_missing": create_if_missing,
        }
        reply = await io(client._request("app.lookup", request))
        app = App(name)
        app._app_id, app._client = reply["app_id"], client
        return app

    @blocking_context
    async def run(
        self,
        client: Client | None = None,
        show_progress: bool | None = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: str | None = None,
        *,
        name: str | None = None,
    ) -> AsyncIterator[App]:
        """Run the App: its Functions can be called inside the ``with`` block, and stop at its end.

        Ctrl-C inside ends the block quietly, after the App has stopped.

        Args:
            client: the client to use.
            show_progress: accepted for older programs; use ``modal.enable_output()``.
            detach: let the App go on when the block ends or the client goes away.
            interactive: mark the run as interactive, see ``is_interactive``; needs
                ``modal.enable_output()``, else it warns and stays off.
            environment_name: the environment to run in.
            name: what the run is described as, in place of the App's description.

        Raises:
            InvalidError: when it runs already, or in global scope inside a container.

        Example:
            >>> with app.run():
            ...     square.remote(3)
            9
        """
        from . import _output, runner
        from ._image_publish import built

        self._check_can_run(show_progress)
        if name is not None:
            self.set_description(name)
        output = _output.current()
        if interactive and output is None:
            warnings.warn("interactive=True needs modal.enable_output(); it is off", stacklevel=2)
            interactive = False
        self._running = True
        try:
            client = client or await runner._default_client()
            environment = runner.environment_of(environment_name)
            await runner.hydrate_storage(self, client, environment)
            secrets = await io(runner.secret_references(client, self, None, environment))
            publication = runner.prepare(
                self,
                client.server.render,
                state="detached" if detach else "ephemeral",
                name=None,
                environment=environment,
                secrets=secrets,
                images=await built(self, client, environment, secrets),
            )
            reply = await io(runner.send(client, publication))
            self._published(reply, client)
            self._interactive = interactive
            interrupted = False
            try:
                if output is not None:
                    for tag in self._functions:
                        of_class = tag.endswith(".*")
                        output.created("class" if of_class else "function", tag[:-2] if of_class else tag)
                    output.attach(client, reply["app_id"])
                try:
                    yield self
                except KeyboardInterrupt:
                    interrupted = True
            finally:
                if not detach:
                    # A client that is gone has taken its ephemeral App along.
                    with contextlib.suppress(ConnectionError, ClientClosed):
                        await io(client._request("app.stop", {"app_id": reply["app_id"]}))
                        if output is not None and not interrupted:
                            # What containers say as they end belongs to the run, too.
                            await io(output.drain(reply["app_id"], config["logs_timeout"]))
                if output is not None:
                    output.finished()
        finally:
            self._running = self._interactive = False
            for function in self._functions.values():
                function._unhydrate()

    def _check_can_run(self, show_progress: bool | None) -> None:
        if self._running:
            raise InvalidError("App is already running; leave the first `with app.run()` before a second")
        if in_container() and current_input_id() is None:
            raise InvalidError(
                "Can not run an app in global scope within a container; "
                'move it under `if __name__ == "__main__":` or `if modal.is_local():`'
            )
        if show_progress:
            raise InvalidError(
                "show_progress=True is gone; use `with modal.enable_output():` around app.run()"
            )
        if show_progress is not None:
            warn_deprecated("show_progress=False has no effect; output is off without modal.enable_output()")

    @blocking
    async def deploy(
        self,
        *,
        name: str | None = None,
        environment_name: str | None = None,
        client: Client | None = None,
        tag: str = "",
    ) -> App:
        """Deploy the App: it stays until it is stopped, and other programs find it by its name.

        Args:
            name: the name to deploy under; by default the App's own.
            environment_name: the environment to deploy to.
            client: the client to use.
            tag: a word for the deployment's history, such as a version.

        Raises:
            InvalidError: when there is no name.

        Example:
            >>> app.deploy(name="my-app", tag="v1").app_id
            'ap-...'
        """
        from .runner import deploy_app

        await deploy_app.aio(self, name=name, client=client, environment_name=environment_name, tag=tag)
        return self

    def _published(self, reply: Mapping[str, Any], client: Client) -> None:
        from . import _output

        self._app_id, self._client = reply["app_id"], client
        output = _output.current()
        if output is not None:
            for name, url in reply.get("web_urls", {}).items():
                output.served(name, url)
        for name, function_id in reply["functions"].items():
            if name in self._functions:
                self._functions[name]._hydrate(function_id, client)

    def local_entrypoint(
        self, *args: Any, name: str | None = None
    ) -> Callable[[Callable[P, R]], LocalEntrypoint[P, R]]:
        """Make a function one that ``modal-nomad run`` starts on this machine; it may be async.

        Its parameters become command line flags.

        Args:
            name: its name on the command line; by default the function's own.

        Raises:
            InvalidError: when the App has one of that name already.

        Example:
            >>> @app.local_entrypoint()
            ... def main(count: int = 3):
            ...     print(sum(square.map(range(count))))
        """
        if args:
            raise InvalidError(called_without_parentheses("local_entrypoint", args[0]))
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"name is {name!r}; give a string")

        def add(raw_f: Callable[P, R]) -> LocalEntrypoint[P, R]:
            info = function_info(raw_f, name=name, serialized=True)
            old = self._entrypoints.get(info.name)
            if old is not None and not same_place(old.info, info):
                raise InvalidError(f"Duplicate local entrypoint name: {info.name}; give one of the two name=")
            entrypoint = LocalEntrypoint(self, info, raw_f)
            self._entrypoints[info.name] = entrypoint
            return entrypoint

        return add

    def include(self, /, other_app: App) -> App:
        """Take the objects of another App into this one; returns this App.

        Example:
            >>> whole = App("whole").include(app)
            >>> with whole.run():
            ...     square.remote(3)
            9

        Raises:
            InvalidError: the other is no App.
        """
        if not isinstance(other_app, App):
            raise InvalidError(f"App.include() takes another App, not {other_app!r}")
        for name, function in other_app._functions.items():
            old = self._functions.get(name)
            if old is not None and old is not function:
                logger().warning("Overriding existing function %s with the one of %r", name, other_app)
            self._functions[name] = function
        self._classes.update(other_app._classes)
        return self
