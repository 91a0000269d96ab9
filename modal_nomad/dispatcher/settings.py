"""The dispatcher's configuration: every tunable, with its unit and its reason, in one commented file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_nomad.dispatcher._proxies import proxy_faults
from modal_nomad.dispatcher.gateway.settings import GatewaySettings
from modal_nomad.dispatcher.images.settings import BuildSettings
from modal_nomad.dispatcher.settings_files import SettingsError, read_settings, read_token
from modal_nomad.dispatcher.tunnels.settings import TunnelSettings
from modal_nomad.render import RenderSettings
from modal_nomad.wire.address import parse_address

if TYPE_CHECKING:
    from modal_nomad.dispatcher.gateway.certificates import TlsSettings
    from modal_nomad.hashicorp.vault import VaultSettings

AUTH_MODES = ("none", "token", "nomad")
ENGINES = ("local", "nomad")
DURABILITIES = ("power", "process")
DEFAULT_ENVIRONMENT = "main"
LOCAL_FILE = "local.toml"
# What of the embedded dispatcher is not decided by its being one.
LOCAL_NAMES = frozenset(
    {
        "default_max_containers",
        "garbage_age",
        "garbage_interval",
        "images",
        "nfs",
        "proxies",
        "render",
        "result_days",
        "s3",
        "store",
        "tunnels",
        "vault",
    }
)
NAMESPACE = re.compile(r"[A-Za-z0-9-]{1,128}")
NFS_NAMES = frozenset({"directory", "node_directory", "volume", "volume_type"})
WEB_TYPES: Mapping[str, type] = {
    "listen": str,
    "domain": str,
    "workspace": str,
    "url": str,
    "trusted_proxies": list,
    "max_waiting": int,
    "max_clients": int,
    "answer_seconds": float,
    "gateway_token": str,
    "gateway_token_file": str,
    "consul": bool,
    "consul_check": str,
    "consul_check_interval": float,
    "consul_namespace": str,
    "edge": bool,
    "edge_seconds": float,
}
VAULT_NAMES = frozenset({"address", "token", "token_file", "namespace", "ca_file", "mount", "prefix", "role"})


@dataclass(frozen=True)
class Settings:
    """What ``EXAMPLE`` of ``settings_example`` explains, read and checked."""

    listen: str = "http://127.0.0.1:8520"
    tls_cert: str = ""
    tls_key: str = ""
    advertise: str = ""
    home: str = "/var/lib/modal-nomad"
    store: str = field(default="", repr=False)
    durability: str = "power"
    engine: str = "nomad"
    auth: str = "nomad"
    client_grace: float = 10.0
    result_days: float = 7.0
    garbage_age: float = 86400.0
    garbage_interval: float = 3600.0
    default_max_containers: int = 0
    nomad: Mapping[str, Any] = field(default_factory=dict)
    vault: Mapping[str, Any] = field(default_factory=dict, repr=False)
    s3: Mapping[str, Any] = field(default_factory=dict, repr=False)
    namespaces: Mapping[str, Any] = field(default_factory=dict)
    nfs: Mapping[str, Any] = field(default_factory=dict)
    proxies: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    web: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tunnels: Mapping[str, Any] = field(default_factory=dict)
    tls: Mapping[str, Any] = field(default_factory=dict)
    pki: Mapping[str, Any] = field(default_factory=dict, repr=False)
    render: Mapping[str, Any] = field(default_factory=dict)
    embedded: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise SettingsError(f"engine is {self.engine!r}: use one of {', '.join(ENGINES)}")
        if self.auth not in AUTH_MODES:
            raise SettingsError(f"auth is {self.auth!r}: use one of {', '.join(AUTH_MODES)}")
        if self.listen.startswith("https:") != bool(self.tls_cert) or bool(self.tls_cert) != bool(
            self.tls_key
        ):
            raise SettingsError(
                'tls_cert, tls_key and listen = "https://…" belong together: give all three or none'
            )
        if not self.client_grace >= 0 or self.result_days <= 0:
            raise SettingsError("client_grace must not be negative and result_days must be above 0")
        if self.garbage_age <= 0 or self.garbage_interval <= 0:
            raise SettingsError("garbage_age and garbage_interval must be above 0")
        if self.durability not in DURABILITIES:
            raise SettingsError(f"durability is {self.durability!r}: use one of {', '.join(DURABILITIES)}")
        if self.store and not self.store.startswith(("postgresql://", "postgres://")):
            raise SettingsError(
                "store is no address of PostgreSQL: give postgresql://user@host:port/database, or leave it "
                "empty for SQLite"
            )
        for name in ("listen", "advertise"):
            try:
                parse_address(getattr(self, name) or self.listen)
            except ValueError as error:
                raise SettingsError(f"{name}: {error}") from None
        if self.s3:
            _check_s3(self.s3)
        known = {f.name for f in dataclasses.fields(RenderSettings)}
        if unknown := sorted(set(self.render) - known):
            raise SettingsError(
                f"[render] has no setting {unknown[0]!r}; known are {', '.join(sorted(known))}"
            )
        for table, values, names in (("vault", self.vault, VAULT_NAMES), ("nfs", self.nfs, NFS_NAMES)):
            if unknown := sorted(set(values) - names):
                raise SettingsError(
                    f"[{table}] has no setting {unknown[0]!r}; known are {', '.join(sorted(names))}"
                )
            if wrong := sorted(name for name, value in values.items() if not isinstance(value, str)):
                raise SettingsError(f"[{table}]: {wrong[0]} must be a string")
        for name, value in self.namespaces.items():
            if not isinstance(value, str) or not NAMESPACE.fullmatch(value):
                raise SettingsError(
                    f"[namespaces]: {name} is {value!r}; give a Nomad namespace: letters, digits and '-'"
                )
        for name in ("directory", "node_directory"):
            if not self.nfs.get(name, "/").startswith("/") and self.nfs[name]:
                raise SettingsError(f"[nfs]: {name} is {self.nfs[name]!r}; give an absolute path")
        if fault := proxy_faults(self.proxies, self.engine):
            raise SettingsError(fault)
        if self.tls or self.pki:
            self.tls_settings()
        self._check_web()
        self.tunnel_settings()
        try:
            self.build_settings()
        except ValueError as error:
            raise SettingsError(f"[images]: {error}") from None
        try:
            self.render_dict("")
        except (TypeError, ValueError) as error:
            raise SettingsError(f"[render]: {error}") from None

    def _check_web(self) -> None:
        if unknown := sorted(set(self.web) - set(WEB_TYPES)):
            raise SettingsError(
                f"[web] has no setting {unknown[0]!r}; known are {', '.join(sorted(WEB_TYPES))}"
            )
        for name, value in self.web.items():
            kind = WEB_TYPES[name]
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise SettingsError(f"[web]: {name} is {value!r}; it must be of type {kind.__name__}")
        if self.web.get("url") and "{label}" not in self.web["url"]:
            raise SettingsError("[web]: url must hold {label}, as in https://{label}.modal.example.com")
        if self.web.get("listen"):
            try:
                where = parse_address(self.web["listen"])
            except ValueError as error:
                raise SettingsError(f"[web]: listen: {error}") from None
            if where.path:
                raise SettingsError('[web]: listen must be an address such as "http://0.0.0.0:8080"')
            if where.tls and not (self.tls_cert or self.tls_settings().given):
                raise SettingsError(
                    '[web]: listen = "https://…" needs a certificate: give one of [tls], [pki] or tls_cert'
                )

    def build_settings(self) -> BuildSettings:
        """Return what is said of images. Raises ValueError."""
        return BuildSettings.from_table(self.images)

    @property
    def workspace(self) -> str:
        """What the host names of endpoints begin with."""
        return str(self.web.get("workspace", ""))

    def gateway_token(self) -> str:
        """Return what gateways of other processes prove themselves with, or an empty string.

        Raises:
            SettingsError: it is too short, or its file cannot be read.
        """
        return read_token(self.web.get("gateway_token", ""), self.web.get("gateway_token_file", ""))

    def gateway_settings(self) -> GatewaySettings:
        """Return what the web gateway is told."""
        names = {f.name for f in dataclasses.fields(GatewaySettings)}
        given = {name: value for name, value in self.web.items() if name in names}
        if "trusted_proxies" in given:
            given["trusted_proxies"] = tuple(given["trusted_proxies"])
        return GatewaySettings(**given)

    def tls_settings(self) -> TlsSettings:
        """Return where the certificates of endpoints and tunnels come from. Raises SettingsError."""
        from modal_nomad.dispatcher.gateway.certificates import TlsSettings

        given = TlsSettings.read(self.tls, self.pki)
        if self.tls_cert:
            given = dataclasses.replace(given, files=(*given.files, (self.tls_cert, self.tls_key)))
        return given

    def tunnel_settings(self) -> TunnelSettings:
        """Return where tunnels may be. Raises SettingsError."""
        try:
            return TunnelSettings.read(self.tunnels, embedded=self.embedded)
        except ValueError as error:
            raise SettingsError(str(error)) from None

    @property
    def address(self) -> str:
        """The address that others reach it by."""
        return self.advertise or self.listen

    def vault_settings(self) -> VaultSettings | None:
        """Return how to reach Vault, or None where there is none."""
        if not self.vault.get("address"):
            return None
        from modal_nomad.hashicorp.vault import VaultSettings

        given = {k: v for k, v in self.vault.items() if v and k not in ("prefix", "role")}
        if given.get("token_file"):
            given["token_file"] = os.path.expanduser(given["token_file"])
            given.setdefault("token", "")
        return dataclasses.replace(VaultSettings.from_env(), **given)

    def render_dict(self, runtime_sha: str, web_sha: str = "") -> dict[str, Any]:
        """Return the settings for rendering jobs, as clients get them."""
        vault: dict[str, Any] = {}
        if self.engine == "nomad" and self.vault.get("address"):
            vault["vault_mount"] = self.vault.get("mount") or "secret"
            vault["vault_prefix"] = self.vault_prefix
            vault["vault_role"] = self.vault.get("role", "")
            vault["vault_namespace"] = self.vault.get("namespace", "")
        ours: dict[str, Any] = {
            "server_url": self.address,
            "runtime_sha": runtime_sha,
            "web_sha": web_sha,
            "proxies": {name: dict(table) for name, table in self.proxies.items()},
        }
        if self.engine == "nomad":
            main = self.render.get("namespace", RenderSettings.namespace)
            ours["namespaces"] = {DEFAULT_ENVIRONMENT: main, **self.namespaces}
        # Where nodes need a registry, and there is none, each container installs its packages.
        builds = {"build_plain_images": self.engine == "local" or bool(self.build_settings().repository)}
        given = {**vault, **self._nfs_render(), **self._web_render(), **builds, **self.render, **ours}
        return RenderSettings.from_dict(given).to_dict()

    def _web_render(self) -> dict[str, Any]:
        names = ("consul_check", "consul_check_interval", "consul_namespace", "edge", "edge_seconds")
        return {
            "web_domain": self.gateway_settings().domain,
            "web_workspace": self.workspace,
            "consul_services": bool(self.web.get("consul", False)) and self.engine == "nomad",
            **{name: self.web[name] for name in names if name in self.web},
        }

    def _nfs_render(self) -> dict[str, Any]:
        place = self.nfs.get("node_directory") or (str(self.nfs_place) if self.nfs_place is not None else "")
        if self.engine == "nomad" and self.nfs.get("volume"):
            return {
                "nfs_volume": self.nfs["volume"],
                "nfs_volume_type": self.nfs.get("volume_type") or "host",
            }
        return {"nfs_directory": place}

    @property
    def nfs_place(self) -> Path | None:
        """Where this process has the directory of all NetworkFileSystems, or None where it has not."""
        if self.nfs.get("directory"):
            return Path(self.nfs["directory"])
        return Path(self.home) / "nfs" if self.engine == "local" else None

    @property
    def vault_prefix(self) -> str:
        """The folder above the environments' folders in Vault."""
        return str(self.vault.get("prefix", "modal")).strip("/")

    @classmethod
    def for_home(cls, home: Path) -> Settings:
        """Return the embedded daemon's settings: a Unix socket whose directory is the permission.

        What ``local.toml`` in that directory says of Vault, a shared directory or how long results are kept
        holds as in any dispatcher's file.

        Raises:
            SettingsError: MODAL_CLIENT_GRACE or MODAL_DURABILITY, or the file, cannot be used.
        """
        grace = os.environ.get("MODAL_CLIENT_GRACE", "")
        try:
            client_grace = float(grace) if grace else cls.client_grace
        except ValueError:
            raise SettingsError(f"MODAL_CLIENT_GRACE is {grace!r}: give a number of seconds") from None
        file = home / LOCAL_FILE
        return cls(
            **(read_settings(cls, [file], LOCAL_NAMES) if file.exists() else {}),
            client_grace=client_grace,
            durability=os.environ.get("MODAL_DURABILITY") or cls.durability,
            listen=f"unix://{home / 'daemon.sock'}",
            home=str(home),
            engine="local",
            auth="none",
            embedded=True,
        )

    @classmethod
    def load(cls, *paths: Path) -> Settings:
        """Read TOML files; what a later one says counts, table by table.

        Raises:
            SettingsError: naming the file and the fault.
        """
        return cls(**read_settings(cls, paths, {f.name for f in dataclasses.fields(cls)} - {"embedded"}))


def _check_s3(given: Mapping[str, Any]) -> None:
    from modal_nomad.dispatcher.blobs.s3_settings import S3Settings

    types = {f.name: type(f.default) for f in dataclasses.fields(S3Settings)}
    for name, value in given.items():
        if name not in types:
            raise SettingsError(f"[s3] has no setting {name!r}; known are {', '.join(sorted(types))}")
        if type(value) is not types[name]:
            raise SettingsError(f"[s3]: {name} must be a {types[name].__name__}")
    if bool(given.get("access_key_id")) != bool(given.get("secret_access_key")):
        raise SettingsError("[s3]: access_key_id and secret_access_key belong together: give both or none")
    if not given.get("bucket") and any(value for name, value in given.items() if name != "prefix"):
        raise SettingsError("[s3] names no bucket: give its name as bucket, or leave all of it out")
    if given.get("endpoint") and not str(given["endpoint"]).startswith(("http://", "https://")):
        raise SettingsError(f"[s3]: endpoint is {given['endpoint']!r}: give a URL such as https://HOST:PORT")
