"""Settings: environment variables first, then the active profile of the ``.modal.toml`` file, then defaults.

The file has one table per profile, and at most one of them says ``active = true``::

    [laptop]
    environment = "dev"

    [cluster]
    active = true
    server_url = "https://modal.example.org"
    token_id = "ak-…"
    token_secret = "as-…"

========================  ===================================  =========================================
key                       environment variable                 default
========================  ===================================  =========================================
``server_url``            ``MODAL_SERVER_URL``                 none: the embedded server of this machine
``environment``           ``MODAL_ENVIRONMENT``                none: the server's own default
``token_id``              ``MODAL_TOKEN_ID``                   none
``token_secret``          ``MODAL_TOKEN_SECRET``               none
``loglevel``              ``MODAL_LOGLEVEL``                   ``WARNING``
``logs_timeout``          ``MODAL_LOGS_TIMEOUT``               10
``automount``             ``MODAL_AUTOMOUNT``                  true
``client_grace``          ``MODAL_CLIENT_GRACE``               10
``durability``            ``MODAL_DURABILITY``                 ``power``
``force_build``           ``MODAL_FORCE_BUILD``                false
``traceback``             ``MODAL_TRACEBACK``                  false
(trusted authorities)     ``MODAL_CA_BUNDLE``                  the system's; a PEM file adds to them
(the file's place)        ``MODAL_CONFIG_PATH``                ``~/.modal.toml``
(the profile in use)      ``MODAL_PROFILE``                    the active one, else ``default``
========================  ===================================  =========================================

``client_grace`` is how many seconds a program may be gone before the embedded server stops its ephemeral
Apps, ``durability`` what its writes outlive (``power``: a power cut; ``process``: the end of the server
alone); the server takes both when it starts. A cluster's dispatcher has them in a configuration of its own.

Inside containers the file is neither read nor written.

Example:
    >>> from modal_nomad.config import config
    >>> config["environment"] or "the server's own"
    "the server's own"
    >>> config.get("logs_timeout")
    10.0
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .exception import InvalidError, NotFoundError

DEFAULT_PATH = "~/.modal.toml"
DEFAULT_PROFILE = "default"
SECRET_KEYS = frozenset({"token_secret"})


class _UnknownProfile(NotFoundError, KeyError):
    """Both what the pages promise (KeyError) and what newer clients raise (NotFoundError)."""

    __str__ = Exception.__str__


def _unknown_profile(name: str) -> _UnknownProfile:
    return _UnknownProfile(
        f"There is no profile {name!r} in {config_path()}; `modal-nomad profile list` shows what there is"
    )


class _Setting(NamedTuple):
    default: Any = None
    convert: Callable[[Any], Any] = lambda value: value


def _to_bool(value: Any) -> bool:
    return str(value).strip().lower() not in ("", "0", "false")


_LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})


def _to_level(value: Any) -> str:
    level = str(value).upper()
    if level not in _LEVELS:
        raise ValueError(level)
    return level


def _to_durability(value: Any) -> str:
    if value not in ("power", "process"):
        raise ValueError(value)
    return str(value)


_SETTINGS: Mapping[str, _Setting] = {
    "automount": _Setting(True, _to_bool),
    "client_grace": _Setting(10.0, float),
    "durability": _Setting("power", _to_durability),
    "environment": _Setting(),
    "force_build": _Setting(False, _to_bool),
    "image_builder_version": _Setting(),
    "image_id": _Setting(),
    "loglevel": _Setting("WARNING", _to_level),
    "logs_timeout": _Setting(10.0, float),
    "server_url": _Setting(),
    "task_id": _Setting(),
    "token_id": _Setting(),
    "token_secret": _Setting(),
    "traceback": _Setting(False, _to_bool),
}


def in_container() -> bool:
    """Say whether this process runs inside one of our containers."""
    return os.environ.get("MODAL_IS_REMOTE") == "1"


def config_path() -> str:
    """Return where the configuration file is, or would be."""
    return os.path.expanduser(os.environ.get("MODAL_CONFIG_PATH") or DEFAULT_PATH)


def _read_profiles() -> dict[str, dict[str, Any]]:
    path = config_path()
    if in_container() or not os.path.exists(path):
        return {}
    # Imported only when there is a file: start-up without one stays cheap.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
    with open(path, "rb") as file:
        try:
            data: dict[str, Any] = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise InvalidError(f"{path} is no valid TOML file: {exc}") from None
    for key, value in data.items():
        if not isinstance(value, dict):
            raise InvalidError(
                f"{path} must contain table sections, one per profile: put {key!r} under [{DEFAULT_PROFILE}]"
            )
    return data


def _pick_profile(profiles: Mapping[str, Mapping[str, Any]]) -> str:
    named = os.environ.get("MODAL_PROFILE")
    if named:
        return named
    active = [name for name, values in profiles.items() if values.get("active") is True]
    remedy = "choose one with `modal-nomad profile activate NAME`, or set MODAL_PROFILE"
    if len(active) > 1:
        raise InvalidError(
            f"More than one Modal profile is active in {config_path()} ({', '.join(active)}); {remedy}"
        )
    if not active and len(profiles) > 1:
        raise InvalidError(
            f"No Modal profile is active in {config_path()}, which has {len(profiles)}; {remedy}"
        )
    return active[0] if active else DEFAULT_PROFILE


class Config:
    """Looks settings up; ``modal_nomad.config.config`` is the instance that the library uses.

    Nothing is read before the first look-up that needs the file.
    """

    def __init__(self) -> None:
        self._cached: tuple[object, dict[str, dict[str, Any]]] | None = None

    def _profiles(self) -> dict[str, dict[str, Any]]:
        path = config_path()
        try:
            stat = os.stat(path)
            stamp: object = (path, stat.st_mtime_ns, stat.st_size, in_container())
        except OSError:
            return {}
        if self._cached is None or self._cached[0] != stamp:
            self._cached = (stamp, _read_profiles())
        return self._cached[1]

    def get(self, key: str, profile: str | None = None, use_env: bool = True) -> Any:
        """Return a setting.

        Args:
            key: its name, such as ``environment``.
            profile: the profile to look in; by default the one in use.
            use_env: whether an environment variable ``MODAL_…`` goes first.

        Raises:
            KeyError: when there is no such setting.
            InvalidError: when the value or the file cannot be understood.
        """
        if key not in _SETTINGS:
            raise KeyError(key)
        setting = _SETTINGS[key]
        variable = "MODAL_" + key.upper()
        if use_env and variable in os.environ:
            value, origin = os.environ[variable], variable
        else:
            profiles = self._profiles()
            name = profile or _pick_profile(profiles)
            if key == "server_url" and name not in profiles and name != DEFAULT_PROFILE:
                # Else a misspelt profile would run on this machine what was meant for a cluster.
                raise _unknown_profile(name)
            section = profiles.get(name, {})
            if key not in section:
                return setting.default
            value, origin = section[key], f"{key} in {config_path()}"
        try:
            return setting.convert(value)
        except ValueError:
            raise InvalidError(f"{origin} is {value!r}; give a value such as {setting.default!r}") from None

    def profile(self) -> str:
        """Return the name of the profile in use."""
        return _pick_profile(self._profiles())

    def override_locally(self, key: str, value: str) -> None:
        """Set a setting in this process (and its children) only, through its environment variable."""
        os.environ["MODAL_" + key.upper() if key in _SETTINGS else key.upper()] = value

    def __getitem__(self, key: str) -> Any:
        return self.get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(_SETTINGS)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by its name; this includes the token's secret."""
        return {key: self.get(key) for key in _SETTINGS}

    def __repr__(self) -> str:
        shown = {k: "***" if k in SECRET_KEYS and v else v for k, v in self.to_dict().items()}
        return f"Config({shown})"


config = Config()


def config_profiles() -> list[str]:
    """List the profiles of the configuration file."""
    return list(_read_profiles())


def config_set_active_profile(env: str) -> None:
    """Make a profile the active one, in the configuration file; comments in it are kept.

    Args:
        env: the profile's name.

    Raises:
        NotFoundError: when the file has no such profile; also a ``KeyError``.
        InvalidError: inside a container.
    """
    if in_container():
        raise InvalidError("The configuration file cannot be written inside a container")
    if env not in _read_profiles():
        raise _unknown_profile(env)
    from ._config_file import activate_profile

    activate_profile(env)
