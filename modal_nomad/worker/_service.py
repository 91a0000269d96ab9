"""A class in its container: one instance, whose methods are called by name."""

from typing import Any, Callable, Dict, Optional

from .._class_info import class_info
from .._execution_context import current_work
from ..cls import Cls, inside_container
from ..exception import NotFoundError
from ..wire.spec import FunctionSpec
from ._lifecycle import Lifecycle


class Service:
    """Calls the method that the current input names, on the container's one instance.

    Args:
        found: the user's class, or what ``@app.cls()`` made of it.
        spec: the Function's specification.
        function_id: the Function that this container serves.
        params: the serialized constructor parameters, or None.
    """

    def __init__(self, found: Any, spec: FunctionSpec, function_id: str, params: Optional[bytes]) -> None:
        self._spec = spec
        self._params = params
        known = found._info if isinstance(found, Cls) else None
        info = known or class_info(found)
        self._info = info
        self._object = inside_container(info, function_id)
        self.lifecycle = Lifecycle(info, spec)
        self._methods: Dict[str, Callable[..., Any]] = {}
        self._printing = ""
        self._printed: Optional[Callable[[str], None]] = None

    def name_output(self, printed: Callable[[str], None]) -> None:
        """Have ``printed`` called with a method's name before it is the one that prints.

        Args:
            printed: sends what was printed until now under the name before.
        """
        self._printed = printed

    def begin(self) -> None:
        """Make the instance as every container of these parameters starts out: what a snapshot keeps.

        Raises:
            BaseException: what the constructor or a hook raises.
        """
        self.lifecycle.begin(self._params, self._object)

    def enter(self) -> None:
        """Make the instance ready for this container's inputs.

        Raises:
            BaseException: what a hook raises.
        """
        instance = self.lifecycle.instance
        self.lifecycle.enter()
        self._object._adopt(instance)
        self._methods = {name: p.raw_f.__get__(instance) for name, p in self._info.methods.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        work = current_work.get()
        name = work[5] if work is not None else ""
        if name != self._printing and self._printed is not None:
            self._printing = name
            self._printed(name)
        return self.method(name)(*args, **kwargs)

    def method(self, name: str) -> Callable[..., Any]:
        """Return a method of the instance. Raises NotFoundError."""
        found = self._methods.get(name)
        if found is None:
            known = ", ".join(self._methods) or "none"
            raise NotFoundError(
                f"class {self._info.user_cls.__name__} has no method {name!r}; its methods are {known}"
            )
        return found

    def stream(self, streams: Any) -> None:
        """Have generator methods send what they yield, by way of ``_generators.Streams``."""
        for name, method in self._spec.methods.items():
            if method.is_generator and name in self._methods:
                label = f"{self._info.user_cls.__name__}.{name}"
                self._methods[name] = streams.wrap(self._methods[name], label, method.is_async)

    def in_thread(self, name: str) -> bool:
        """Say whether a method must not run on the event loop."""
        method = self._spec.methods.get(name)
        return method is not None and not method.is_async

    @property
    def on_loop(self) -> bool:
        """Whether any method is async, so that inputs run on the instance's event loop."""
        return any(method.is_async for method in self._spec.methods.values())
