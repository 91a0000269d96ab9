"""Modal's Python API on your own Nomad, and on a laptop with nothing installed.

Example:
    >>> import modal_nomad as modal
    >>> app = modal.App("example")
    >>> @app.function()
    ... def square(x: int) -> int:
    ...     return x * x
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import app as app
    from . import call_graph as call_graph
    from . import client as client
    from . import cloud_bucket_mount as cloud_bucket_mount
    from . import cls as cls
    from . import config as config
    from . import dict as dict
    from . import environment as environment
    from . import exception as exception
    from . import file_pattern_matcher as file_pattern_matcher
    from . import function_call as function_call
    from . import functions as functions
    from . import gpu as gpu
    from . import image as image
    from . import mount as mount
    from . import network_file_system as network_file_system
    from . import nomad as nomad
    from . import object as object
    from . import proxy as proxy
    from . import queue as queue
    from . import retries as retries
    from . import runner as runner
    from . import schedule as schedule
    from . import scheduler_placement as scheduler_placement
    from . import secret as secret
    from . import tunnel as tunnel
    from . import types as types
    from . import volume as volume
    from ._execution_context import current_function_call_id, current_input_id, is_local
    from ._output import enable_output
    from ._parameters import parameter
    from ._partial_function import batched, build, concurrent, enter, exit, method
    from ._web_decorators import asgi_app, fastapi_endpoint, web_endpoint, web_server, wsgi_app
    from .app import App
    from .client import Client
    from .cloud_bucket_mount import CloudBucketMount
    from .cls import Cls
    from .dict import Dict
    from .environment import Environment
    from .exception import Error
    from .file_pattern_matcher import FilePatternMatcher
    from .functions import Function, FunctionCall, gather
    from .image import Image
    from .mount import Mount
    from .network_file_system import NetworkFileSystem
    from .proxy import Proxy
    from .queue import Queue
    from .retries import Retries
    from .schedule import Cron, Period
    from .secret import Secret
    from .tunnel import Tunnel, forward
    from .volume import Volume

__version__ = "0.1.0"

__all__ = [
    "App",
    "Client",
    "CloudBucketMount",
    "Cls",
    "Cron",
    "Dict",
    "Environment",
    "Error",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "Mount",
    "NetworkFileSystem",
    "Period",
    "Proxy",
    "Queue",
    "Retries",
    "Secret",
    "Tunnel",
    "Volume",
    "asgi_app",
    "batched",
    "build",
    "concurrent",
    "config",
    "current_function_call_id",
    "current_input_id",
    "enable_output",
    "enter",
    "exit",
    "fastapi_endpoint",
    "forward",
    "gather",
    "is_local",
    "method",
    "parameter",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]

# Where each name is; loaded when first asked for, so that a container pays for what it uses.
_PLACES = {
    "App": "app",
    "Client": "client",
    "CloudBucketMount": "cloud_bucket_mount",
    "Cls": "cls",
    "Cron": "schedule",
    "Dict": "dict",
    "Environment": "environment",
    "Error": "exception",
    "FilePatternMatcher": "file_pattern_matcher",
    "Function": "functions",
    "FunctionCall": "functions",
    "Image": "image",
    "Mount": "mount",
    "NetworkFileSystem": "network_file_system",
    "Period": "schedule",
    "Proxy": "proxy",
    "Queue": "queue",
    "Retries": "retries",
    "Secret": "secret",
    "Tunnel": "tunnel",
    "Volume": "volume",
    "asgi_app": "_web_decorators",
    "batched": "_partial_function",
    "build": "_partial_function",
    "concurrent": "_partial_function",
    "current_function_call_id": "_execution_context",
    "current_input_id": "_execution_context",
    "enable_output": "_output",
    "enter": "_partial_function",
    "exit": "_partial_function",
    "fastapi_endpoint": "_web_decorators",
    "forward": "tunnel",
    "gather": "functions",
    "is_local": "_execution_context",
    "method": "_partial_function",
    "parameter": "_parameters",
    "web_endpoint": "_web_decorators",
    "web_server": "_web_decorators",
    "wsgi_app": "_web_decorators",
}
_SUBMODULES = frozenset(
    {
        "app",
        "call_graph",
        "client",
        "cloud_bucket_mount",
        "cls",
        "config",
        "dict",
        "environment",
        "exception",
        "file_pattern_matcher",
        "function_call",
        "functions",
        "gpu",
        "image",
        "mount",
        "network_file_system",
        "nomad",
        "object",
        "proxy",
        "queue",
        "retries",
        "runner",
        "schedule",
        "scheduler_placement",
        "secret",
        "tunnel",
        "types",
        "volume",
    }
)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PLACES:
        value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    elif name in _SUBMODULES:
        value = import_module(f"{__name__}.{name}")
    elif name == "GPU":
        # Older examples write the module's name so.
        value = import_module(f"{__name__}.gpu")
    elif name == "Stub":
        from ._options import warn_deprecated

        warn_deprecated("modal.Stub is now called modal.App")
        return import_module(f"{__name__}.app").App
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
