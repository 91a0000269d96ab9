"""The decorators that put a function or a method on the web."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ._options import warn_deprecated
from ._partial_function import (
    WEB,
    PartialFunction,
    _checked,
    _no_positional,
    _takes_self,
    positional_count,
)
from .exception import InvalidError
from .wire.spec import WebSpec

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
DEFAULT_STARTUP_SECONDS = 5.0
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")


def asgi_app(
    *args: Any,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
    wait_for_response: bool = True,
) -> Callable[[Any], Any]:
    """Serve the ASGI app (FastAPI, Starlette, Django, ...) that a function returns.

    The function runs once in each container; requests then go to what it returned. WebSockets and the
    app's lifespan work.

    Args:
        args: none; there to notice forgotten parentheses.
        label: what the URL begins with, in place of the names of App and function.
        custom_domains: host names of your own that lead here, too.
        requires_proxy_auth: answer only requests with a proxy auth token (``Modal-Key``, ``Modal-Secret``).
        wait_for_response: deprecated: True.

    Raises:
        InvalidError: for a function with parameters, an async one, a class, or together with another role.

    Example:
        >>> app = modal.App("example-asgi")
        >>> @app.function(serialized=True)
        ... @modal.asgi_app()
        ... def web():
        ...     async def hello(scope, receive, send):
        ...         await send({"type": "http.response.start", "status": 200, "headers": []})
        ...         await send({"type": "http.response.body", "body": b"hello"})
        ...     return hello
        >>> app.registered_web_endpoints
        ['web']
    """
    _no_positional("asgi_app", args)
    _check_waits("asgi_app", wait_for_response)
    return _web("asgi_app", _spec("asgi", label, custom_domains, requires_proxy_auth))


def wsgi_app(
    *args: Any,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
    wait_for_response: bool = True,
) -> Callable[[Any], Any]:
    """Serve the WSGI app (Flask, Django, ...) that a function returns. Its requests run in threads.

    Args:
        args: none; there to notice forgotten parentheses.
        label: what the URL begins with, in place of the names of App and function.
        custom_domains: host names of your own that lead here, too.
        requires_proxy_auth: answer only requests with a proxy auth token (``Modal-Key``, ``Modal-Secret``).
        wait_for_response: deprecated: True.

    Raises:
        InvalidError: for a function with parameters, an async one, a class, or together with another role.

    Example:
        >>> app = modal.App("example-wsgi")
        >>> @app.function(serialized=True)
        ... @modal.wsgi_app()
        ... def web():
        ...     def hello(environ, start_response):
        ...         start_response("200 OK", [])
        ...         return [b"hello"]
        ...     return hello
    """
    _no_positional("wsgi_app", args)
    _check_waits("wsgi_app", wait_for_response)
    return _web("wsgi_app", _spec("wsgi", label, custom_domains, requires_proxy_auth))


def fastapi_endpoint(
    *args: Any,
    method: str = "GET",
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Callable[[Any], Any]:
    """Answer one kind of request with a function, whose parameters FastAPI reads from the request.

    The Image needs FastAPI: ``.pip_install("fastapi[standard]")``. Any origin may ask (CORS).

    Args:
        args: none; there to notice forgotten parentheses.
        method: the HTTP method.
        label: what the URL begins with, in place of the names of App and function.
        custom_domains: host names of your own that lead here, too.
        docs: serve ``/docs``, ``/redoc`` and ``/openapi.json``.
        requires_proxy_auth: answer only requests with a proxy auth token (``Modal-Key``, ``Modal-Secret``).

    Raises:
        InvalidError: for a generator function, a class, an unknown method, or together with another role.

    Example:
        >>> app = modal.App("example-endpoint", image=modal.Image.debian_slim().pip_install("fastapi"))
        >>> @app.function(serialized=True)
        ... @modal.fastapi_endpoint(docs=True)
        ... def square(x: int):
        ...     return {"square": x * x}
        >>> square.local(3)
        {'square': 9}
    """
    _no_positional("fastapi_endpoint", args)
    return _endpoint("fastapi_endpoint", method, docs, label, custom_domains, requires_proxy_auth)


def web_endpoint(
    *args: Any,
    method: str = "GET",
    label: str | None = None,
    docs: bool = False,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
    wait_for_response: bool = True,
) -> Callable[[Any], Any]:
    """Deprecated name of ``fastapi_endpoint``.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     hello = modal.web_endpoint()(lambda: "hello")
    """
    _no_positional("web_endpoint", args)
    _check_waits("web_endpoint", wait_for_response)
    warn_deprecated("@modal.web_endpoint is now called @modal.fastapi_endpoint")
    return _endpoint("web_endpoint", method, docs, label, custom_domains, requires_proxy_auth)


def web_server(
    port: Any = None,
    *args: Any,
    startup_timeout: float = DEFAULT_STARTUP_SECONDS,
    label: str | None = None,
    custom_domains: Iterable[str] | None = None,
    requires_proxy_auth: bool = False,
) -> Callable[[Any], Any]:
    """Serve what listens on a port of the container: any HTTP server, in any language.

    The function runs once in each container and starts the server, in the background.

    Args:
        port: where the server listens, on any address of the container.
        args: none; there to notice forgotten parentheses.
        startup_timeout: seconds until it must accept connections.
        label: what the URL begins with, in place of the names of App and function.
        custom_domains: host names of your own that lead here, too.
        requires_proxy_auth: answer only requests with a proxy auth token (``Modal-Key``, ``Modal-Secret``).

    Raises:
        InvalidError: for a function with parameters, an async one, a class, a port that cannot be, or
            together with another role.

    Example:
        >>> import subprocess
        >>> app = modal.App("example-server")
        >>> @app.function(serialized=True)
        ... @modal.web_server(8000)
        ... def files():
        ...     subprocess.Popen(["python", "-m", "http.server", "8000"])
    """
    if args:
        _no_positional("web_server", args)
    if callable(port) or isinstance(port, PartialFunction):
        raise InvalidError("Did you forget parentheses? Suggestion: `@modal.web_server(8000)`.")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise InvalidError(f"port is {port!r}; give a port from 1 to 65535")
    number = isinstance(startup_timeout, (int, float)) and not isinstance(startup_timeout, bool)
    if not number or startup_timeout <= 0:
        raise InvalidError(f"startup_timeout is {startup_timeout!r}; give a number of seconds above 0")
    spec = _spec("server", label, custom_domains, requires_proxy_auth)
    return _web("web_server", replace(spec, port=port, startup_timeout=float(startup_timeout)))


def _endpoint(
    word: str, method: Any, docs: Any, label: Any, custom_domains: Any, requires_proxy_auth: Any
) -> Callable[[Any], Any]:
    known = method.upper() if isinstance(method, str) else method
    if known not in METHODS:
        raise InvalidError(f"method is {method!r}; give one of {', '.join(METHODS)}")
    if not isinstance(docs, bool):
        raise InvalidError(f"docs is {docs!r}; give True or False")
    spec = _spec("endpoint", label, custom_domains, requires_proxy_auth)
    return _web(word, replace(spec, method=known, docs=docs))


def _spec(kind: str, label: Any, custom_domains: Any, requires_proxy_auth: Any) -> WebSpec:
    if label is not None and (not isinstance(label, str) or not _LABEL.fullmatch(label)):
        raise InvalidError(f"label is {label!r}; give up to 63 lower-case letters, digits and dashes")
    if isinstance(custom_domains, (str, bytes)):
        raise InvalidError(f"custom_domains is a string; give a list of them: [{custom_domains!r}]")
    if custom_domains is not None and not isinstance(custom_domains, Iterable):
        raise InvalidError(f"custom_domains is {custom_domains!r}; give a list of host names")
    domains = tuple(custom_domains or ())
    for domain in domains:
        if not isinstance(domain, str) or not _DOMAIN.fullmatch(domain):
            raise InvalidError(f"custom_domains has {domain!r}; give host names such as 'api.example.com'")
    if not isinstance(requires_proxy_auth, bool):
        raise InvalidError(f"requires_proxy_auth is {requires_proxy_auth!r}; give True or False")
    return WebSpec(
        kind=kind, label=label or "", custom_domains=domains, requires_proxy_auth=requires_proxy_auth
    )


def _check_waits(word: str, value: Any) -> None:
    if value is not True:
        raise InvalidError(f"wait_for_response of @modal.{word} is deprecated and must be True: leave it out")


def _web(word: str, spec: WebSpec) -> Callable[[Any], Any]:
    def decorate(target: Any) -> PartialFunction:
        old = _checked(word, WEB, target)
        if old.settings.web is not None:
            raise InvalidError(f"{old.name} is decorated twice for the web; keep one decorator")
        if old.roles:
            role = min(old.roles)
            raise InvalidError(f"@modal.{role} and @modal.{word} cannot be combined on {old.name}")
        if old.settings.batch_max_size:
            raise InvalidError(f"@modal.batched and @modal.{word} cannot be combined on {old.name}")
        check_served(old.raw_f, old.name, word, spec.kind)
        return PartialFunction(old.raw_f, frozenset({WEB}), replace(old.settings, web=spec))

    return decorate


def check_served(raw_f: Any, name: str, word: str, kind: str) -> None:
    """Check that a function can be served. Raises InvalidError."""
    inner = inspect.unwrap(raw_f)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        hint = "return a StreamingResponse" if kind == "endpoint" else "return the app"
        raise InvalidError(f"{name} is a generator function, which @modal.{word} cannot serve; {hint}")
    if kind == "endpoint":
        return
    if inspect.iscoroutinefunction(inner):
        raise InvalidError(f"{name} is async; what @modal.{word} takes is called once, to set up")
    if positional_count(raw_f) > (1 if _takes_self(raw_f) else 0):
        raise InvalidError(f"{name} has parameters; what @modal.{word} takes is called without any")
