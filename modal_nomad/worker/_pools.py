"""Which pool runs the inputs of a Function, and what it is to know besides what all pools are told."""

from typing import Any, Callable, Dict, Mapping, Tuple

from ..wire.spec import FunctionSpec


def pool_kind(spec: FunctionSpec, service: Any) -> Tuple[Any, Dict[str, Any]]:
    """Return the class of the pool and its options.

    Args:
        spec: of the Function.
        service: the class's instance in this container; None for a plain function.
    """
    options: Dict[str, Any] = {}
    if service is not None and (service.on_loop or spec.batch_max_size):
        options = {"loop": service.lifecycle.loop, "in_thread": service.in_thread}
    elif spec.batch_max_size:
        options = {"in_thread": lambda method: not spec.is_async}
    if spec.batch_max_size:
        from ._batching import BatchPool

        return BatchPool, {**options, "size": spec.batch_max_size, "wait": spec.batch_wait_ms / 1000}
    if options or spec.is_async:
        from ._loop_pool import LoopPool

        return LoopPool, options
    from ._pool import Pool

    return Pool, options


def web_pool(
    spec: FunctionSpec,
    function: Callable[..., Any],
    service: Any,
    welcome: Mapping[str, Any],
    tell: Callable[[int, int, float], None],
) -> Tuple[Any, Callable[..., Any], Dict[str, Any]]:
    """Return what runs a container with endpoints, what it calls for inputs, and its options.

    Args:
        spec: of the Function.
        function: what is served, of a plain function.
        service: the class's instance in this container; None for a plain function.
        welcome: the dispatcher's greeting.
        tell: is told how many requests run, how many ended, and how long these took.
    """
    from ._web import WebPool, add_bundle

    add_bundle()
    _, options = pool_kind(spec, service)
    if service is not None:
        options.update(loop=service.lifecycle.loop, in_thread=service.in_thread)
    elif not spec.is_async:
        # A run of its schedule's holds up no request.
        options.update(in_thread=lambda method: True)
    options.update(
        served=spec.served,
        find=service.method if service is not None else lambda method: function,
        name=spec.name[:-2] if spec.is_class else spec.name,
        key=str(welcome.get("web_key", "")),
        open_to_all=bool(welcome.get("web_open", False)),
        single_use=spec.single_use_containers,
        tell=tell,
    )
    if spec.web is not None and spec.web.kind != "endpoint":
        # An input of its schedule's: the function was called by then, and makes nothing anew.
        return WebPool, _nothing, options
    return WebPool, function, options


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
