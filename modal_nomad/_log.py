"""The library's logger, at the level that the configuration names."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging


def logger() -> logging.Logger:
    """Return the logger ``modal_nomad``.

    Its level is the setting ``loglevel``, unless the program has given it one. Messages below WARNING go to
    stderr where the program has set no logging up: Python itself shows only those from WARNING on.
    """
    import logging

    from .config import config

    found = logging.getLogger("modal_nomad")
    if found.level == logging.NOTSET:
        found.setLevel(config["loglevel"])
    if found.level < logging.WARNING and not found.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        found.addHandler(handler)
    return found
