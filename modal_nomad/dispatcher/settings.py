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
}
VAULT_NAMES = frozenset({"address", "token", "token_file", "namespace", "ca_file", "mount", "prefix", "role"})

EXAMPLE = """\
# The dispatcher's configuration. Every value shown is the default.

# Where it listens. "unix:///path.sock" is possible too.
listen = "http://127.0.0.1:8520"

# For "https://": its certificate, with the chain, and key, in PEM. Both are read at start.
tls_cert = ""
tls_key = ""

# The address that containers dial and fetch artifacts from; empty means `listen`. On a cluster it must
# be reachable from every node, so give the host's address here.
advertise = ""

# Where state lives: store.db, blobs/, logs/.
home = "/var/lib/modal-nomad"

# Where rows live: empty for store.db in `home`, or "postgresql://user@host:5432/database", for dispatchers
# that share it: one is at work, the others stand by. The password may be in PGPASSWORD or PGPASSFILE.
store = ""

# What an acknowledged write outlives: "power" is a power cut or a crash of the machine (each group of writes
# is synced to the disk), "process" the end of the dispatcher alone, however sudden. PostgreSQL always syncs.
durability = "power"

# "nomad" runs containers as Nomad jobs, "local" as processes of this machine.
engine = "nomad"

# Who may call: "nomad" checks the caller's token with Nomad, "token" knows tokens made here,
# "none" lets everybody in (for a development agent on loopback only).
auth = "nomad"

# Seconds that a client may be gone before its ephemeral Apps are stopped and its calls cancelled. The
# embedded dispatcher takes it from MODAL_CLIENT_GRACE, or client_grace of the profile, when it starts.
client_grace = 10.0

# Days that the results of spawned calls are kept.
result_days = 7.0

# Code, runtimes and large values that nothing refers to any more are removed when they are this many
# seconds old, and looked for so often. The age must be longer than any upload takes.
garbage_age = 86400.0
garbage_interval = 3600.0

# The most containers of one Function that names no max_containers; 0 means by the engine: the machine's
# cores (at least 4) locally, four a core of the cluster (at least 100) on Nomad. Below that, a Function
# whose inputs compute gets about one a core, one whose inputs wait gets many.
default_max_containers = 0

[nomad]
# Nomad's HTTP API; empty means the NOMAD_ADDR of the environment. Inside an allocation the task API
# socket works: "unix:///secrets/api.sock".
address = ""
# The token for dispatching containers; empty means the NOMAD_TOKEN of the environment.
token = ""

[vault]
# Vault or OpenBao, for Secrets; an empty address means none: then a dispatcher with engine = "local" keeps
# them in an encrypted file of its home, and one on Nomad takes none.
address = ""
# The token that Secrets are written with; empty means the VAULT_TOKEN of the environment, else what
# token_file holds, which is read at every use.
token = ""
token_file = ""
namespace = ""
ca_file = ""
# Secrets are at <mount>/<prefix>/<environment>/<name>, in an engine of KV version 2.
mount = "secret"
prefix = "modal"
# The JWT role that allocations log in with; empty means the default one of Nomad's own [vault] settings.
role = ""

[s3]
# A bucket of any S3-compatible service for blobs: code, large values, chunks of Volumes. An empty bucket
# means a directory of `home`. It needs `pip install 'modal-nomad[s3]'`.
bucket = ""
# The service, such as "https://minio.example.org:9000"; empty means AWS.
endpoint = ""
# Empty means AWS_REGION of the environment, else "us-east-1".
region = ""
# What the keys of blobs begin with; whatever else is in the bucket is let be.
prefix = "blobs/"
# Empty means what AWS's own tools look for: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a shared
# credentials file, AWS_WEB_IDENTITY_TOKEN_FILE, the instance's role.
access_key_id = ""
secret_access_key = ""
# Whether the bucket stands in the path of a URL: a service of one's own mostly wants it so.
path_style = false
ca_file = ""
# Whether containers and clients fetch from the bucket themselves, by links that are good for 15 minutes;
# where they cannot reach it they ask the dispatcher after all.
redirect = false

[namespaces]
# Each environment is a Nomad namespace of its name, made with the first thing that is put into it, where the
# caller's token may; "main" is the namespace under [render]. Say here which are called otherwise, as
# prod = "batch"; a line "*" = "default" has all others share one.

[nfs]
# The directory that all nodes share, for NetworkFileSystems: an NFS mount, say. Where this dispatcher has it
# mounted; empty means a directory of its home with engine = "local", else none: then containers may use
# them, and nobody reads or writes their files from outside.
directory = ""
# Where the nodes have it mounted; empty means the same path.
node_directory = ""
# Or a Nomad volume that has it, which allocations of the exec driver get mounted, and its type: "host" or
# "csi" (which must allow multi-node-multi-writer).
volume = ""
volume_type = "host"

[proxies]
# Which nodes have the egress address of a modal.Proxy.from_name("office"), by their pool, their meta or both:
# [proxies.office]
# node_pool = "egress"
# node_meta = { egress = "office" }

[images]
# What builds container images: "docker", "podman" or "buildah"; empty takes the first of them that is there.
builder = ""
# Where built images are pushed to, "registry.example.org:5000/modal"; empty keeps them on this machine, which
# only engine = "local" can do. Its user, and the file with the password.
repository = ""
username = ""
password_file = ""
# Whether that registry may be without TLS (docker's daemon has a setting of its own for this).
insecure = false
# The network that build steps have, such as "host"; empty is the builder's default.
network = ""
# The Nomad job that builds on a cluster: jobspecs/image-builder.nomad.hcl.
job = "image-builder"
# What the image builder installs, for clients that ask for no version: docs/images.md.
version = "2025.06"
# What debian_slim and micromamba start from, and the image that has add_python's interpreter in /python; with
# {python} for the version. Empty: python:{python}-slim-bookworm and mambaorg/micromamba of Docker Hub, and an
# interpreter that uv fetches.
debian_slim = ""
micromamba = ""
python = ""

[web]
# Where web endpoints are served, "http://0.0.0.0:8080"; empty: nowhere. The embedded dispatcher takes a port
# of 127.0.0.1 of its own.
listen = ""
# What the host names of endpoints end in: <workspace>--<app>-<function>.<domain>. Its DNS, a wildcard, leads
# here, or to what stands in front of this.
domain = "localhost"
# What all of these host names begin with; may be empty.
workspace = ""
# How URLs begin as users see them, where something stands in front: "https://{label}.modal.example.com".
url = ""
# Addresses of what stands in front, whose X-Forwarded fields are believed.
trusted_proxies = []
# Requests to one Function that wait for a container, at most; and open connections.
max_waiting = 1000
max_clients = 10000
# Seconds until a request without an answer is redirected to its pending result.
answer_seconds = 150.0
# What gateways in processes of their own (`modal-nomad gateway`) prove themselves with: at least 16
# characters, the same for all of them and all dispatchers, here or in a file. Empty: there are none.
gateway_token = ""
gateway_token_file = ""
# Whether the jobs of web Functions register services in Consul, which needs the [consul] settings of Nomad's
# agents: what is checked ("http", "tcp"), how often (seconds), and in which namespace (Enterprise).
consul = false
consul_check = "http"
consul_check_interval = 10.0
consul_namespace = ""
# Whether containers take requests from a proxy of your own as well, which has no key: then anybody does who
# reaches a node's dynamic ports. Those whose endpoints ask for a proxy auth token do not.
edge = false

[tunnels]
# The name or address that tunnels to containers (modal.forward) are reached at; empty: there are none. The
# embedded dispatcher has them on this machine alone.
host = ""
# The address that they listen at, and the ports that they may have, as "30000-30999"; empty means any free
# one. TLS shows the certificate above, where there is none one that the dispatcher signed itself.
listen = "0.0.0.0"
ports = ""
# Tunnels at a time, and connections through one of them.
max_tunnels = 1000
max_connections = 1000

[render]
# How Functions become jobs; see modal_nomad.render.RenderSettings for all of them.
driver = "raw_exec"
namespace = "default"
node_pool = "default"
datacenters = ["*"]
python = "python3"
"""


@dataclass(frozen=True)
class Settings:
    """What ``EXAMPLE`` explains, read and checked."""

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
            if where.tls:
                raise SettingsError(
                    "[web]: the dispatcher serves no https:// here: `modal-nomad gateway` does"
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
        given = {**vault, **self._nfs_render(), **self._web_render(), **self.render, **ours}
        return RenderSettings.from_dict(given).to_dict()

    def _web_render(self) -> dict[str, Any]:
        names = ("consul_check", "consul_check_interval", "consul_namespace", "edge")
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
