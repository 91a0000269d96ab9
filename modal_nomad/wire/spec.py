"""The frozen specifications that cross processes: what a Function is, what its image is.

They are built once, by the SDK, validated there, and travel as JSON objects. A reader that meets a
field it does not know ignores it, so a newer SDK can talk to an older container.
"""

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .mounts import BucketMount, NfsMount, SecretRef, VolumeMount, bucket_variables
from .placement import PlacementSpec, SchedulerSpec

CLEANUP_SECONDS = 30.0
"""What user code may take to clean up after its input was cancelled or ran out of time."""


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces. Content keys are made of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_key(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _known(cls: Any, data: Mapping[str, Any]) -> Dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in data.items() if k in names}


@dataclass(frozen=True)
class RetrySpec:
    """A retry policy. Delays in seconds; attempt n waits ``initial_delay * backoff_coefficient**(n-1)``."""

    max_retries: int
    backoff_coefficient: float = 1.0
    initial_delay: float = 1.0
    max_delay: float = 60.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry number ``attempt`` (1 is the first)."""
        try:
            return min(self.max_delay, self.initial_delay * self.backoff_coefficient ** (attempt - 1))
        except OverflowError:
            return self.max_delay


CONTAINER_DRIVERS = ("docker", "podman")
"""Nomad's task drivers that run container images."""
ENVIRONMENT_KINDS = ("pip", "copy", "uv_sync")
"""The build steps that a Python environment on the node can have."""
# They hold in the steps after them, and of the container's process anyway.
_SETTING_KINDS = ("env", "workdir")


@dataclass(frozen=True)
class ImageLayer:
    """One build step: ``args`` are its words.

    Attributes:
        kind: ``pip`` installs the packages ``args``, by the options ``index_url``, ``extra_index_url``,
            ``find_links``, ``pre``, ``extra_options``, ``requirements`` (the SHA-256 of a
            requirements file), ``env`` and ``uv_version``; ``copy``
            adds the files of the blob ``manifest``, a list of (path, SHA-256, mode), for later steps;
            ``uv_sync`` installs what the lock file among ``files`` has, by ``groups``, ``extras``,
            ``frozen``, ``extra_options`` and ``env``.
            All other kinds, which ``render.image`` knows, need a container runtime.
    """

    kind: str
    args: Tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_base(self) -> bool:
        """Whether it says what the image is made from; without one that is a small Debian with Python."""
        return self.kind in ("base", "micromamba") or bool(self.options.get("base"))

    @property
    def needs_container(self) -> bool:
        """Whether a Python environment on the node cannot have this step."""
        if self.kind in ENVIRONMENT_KINDS:
            return any(self.options.get(name) for name in ("secrets", "gpu", "uv_version"))
        return self.kind not in _SETTING_KINDS


def sync_words(options: Mapping[str, Any]) -> List[str]:
    """Return what the options of a step ``uv_sync`` are on the command line of ``uv sync``."""
    words = ["--frozen"] if options.get("frozen") else []
    for flag in ("group", "extra"):
        words += [word for name in options.get(f"{flag}s") or () for word in (f"--{flag}", name)]
    return words + shlex.split(str(options.get("extra_options") or ""))


@dataclass(frozen=True)
class MountedFile:
    """A file added at container start: absolute ``path`` in the container, SHA-256 of its blob, mode bits."""

    path: str
    blob: str
    mode: int = 0o644


@dataclass(frozen=True)
class ImageSpec:
    """A container's file system and environment, as pure data.

    Attributes:
        python: ``"3.11"`` or ``"3.11.7"``; None is the local minor version, resolved when published.
        layers: the build steps in order; they decide ``environment_key``.
        env: environment variables.
        workdir: absolute working directory, or None.
        files: files put in place when a container starts; they do not rebuild anything.
    """

    python: Optional[str] = None
    layers: Tuple[ImageLayer, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: Optional[str] = None
    files: Tuple[MountedFile, ...] = ()

    @property
    def needs_container(self) -> bool:
        """Whether this is an image for a container runtime, and no Python environment on the node."""
        return any(layer.needs_container for layer in self.layers)

    @property
    def has_packages(self) -> bool:
        """Whether it may have any Python package: nothing but Python itself is sure to have none."""
        return "PYTHONPATH" in self.env or any(layer.kind not in _SETTING_KINDS for layer in self.layers)

    @property
    def registry_tag(self) -> str:
        """The image of a registry that is meant just as it is there; empty where anything is to be built."""
        base, *others = self.layers or (ImageLayer(""),)
        if base.kind != "base" or set(base.options) - {"build"}:
            return ""
        return "" if any(x.kind not in _SETTING_KINDS for x in others) else base.args[0]

    @property
    def environment_key(self) -> str:
        """The content key of what has to be built: the Python version and the layers."""
        return content_key({"python": self.python, "layers": [dataclasses.asdict(x) for x in self.layers]})

    def canonical(self) -> bytes:
        """Return the one JSON text of this specification."""
        return canonical_json(dataclasses.asdict(self))

    @property
    def image_id(self) -> str:
        """``im-`` and the SHA-256 of ``canonical()``, under which the blob store has that text."""
        return "im-" + hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ImageSpec":
        known = _known(cls, data)
        known["layers"] = tuple(
            ImageLayer(x["kind"], tuple(x.get("args", ())), dict(x.get("options", {})))
            for x in known.get("layers", ())
        )
        known["files"] = tuple(MountedFile(**_known(MountedFile, x)) for x in known.get("files", ()))
        return cls(**known)


@dataclass(frozen=True)
class WebSpec:
    """How a function or a method is served on the web.

    Attributes:
        kind: ``asgi`` or ``wsgi``: it returns an app; ``endpoint``: FastAPI calls it; ``server``: it starts
            something that listens on ``port``.
        method: the HTTP method of an endpoint.
        docs: an endpoint shows its documentation.
        port: of a server.
        startup_timeout: seconds until a server must accept connections.
        label: what the URL begins with; empty takes the names of App and function.
        custom_domains: host names that lead here, too.
        requires_proxy_auth: only requests with a proxy auth token are answered.
        dev_suffix: what the URL's label ends with while its App runs only for now; empty once deployed.
    """

    kind: str
    method: str = "GET"
    docs: bool = False
    port: int = 0
    startup_timeout: float = 5.0
    label: str = ""
    custom_domains: Tuple[str, ...] = ()
    requires_proxy_auth: bool = False
    dev_suffix: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "WebSpec":
        known = _known(cls, data)
        known["custom_domains"] = tuple(known.get("custom_domains") or ())
        return cls(**known)


@dataclass(frozen=True)
class MethodSpec:
    """A method of a class: whether it yields, whether it is async, how it is served on the web if it is."""

    is_generator: bool = False
    is_async: bool = False
    web: Optional[WebSpec] = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MethodSpec":
        known = _known(cls, data)
        if known.get("web"):
            known["web"] = WebSpec.from_dict(known["web"])
        return cls(**known)


@dataclass(frozen=True)
class ParameterSpec:
    """A ``modal.parameter()`` of a class.

    Attributes:
        name: of the attribute.
        type: ``str``, ``int``, ``bool`` or ``bytes``.
        default: as JSON, the hexadecimal digits of bytes; None when the parameter must be given.
    """

    name: str
    type: str
    default: Any = None


@dataclass(frozen=True)
class GPUOption:
    """A kind of GPU that will do.

    Attributes:
        model: as in ``"A100-80GB"``; empty for any.
        count: how many of it.
        share: the least part of one card that will do, above 0 and below 1; 0 for whole cards.
        memory: the same as MiB of its memory; 0 for whole cards.
    """

    model: str
    count: int = 1
    share: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class ScheduleSpec:
    """When a deployed Function is called by itself: a crontab line, or a period of all its parts together.

    Attributes:
        cron: the five fields; empty for a period.
        timezone: whose clock a crontab line means.
        months: calendar months of a period.
        days: its days.
        seconds: its seconds.
        prohibit_overlap: a run is left out while the one before it has not ended.
    """

    cron: str = ""
    timezone: str = "UTC"
    months: int = 0
    days: int = 0
    seconds: float = 0.0
    prohibit_overlap: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScheduleSpec":
        """Read the JSON object of a schedule; unknown fields are ignored."""
        return cls(**_known(cls, data))


@dataclass(frozen=True)
class FunctionSpec:
    """All that the dispatcher, an engine and a container need to know of one Function.

    Attributes:
        app: the App's name (or description, when it has no name).
        name: the Function's name in its App.
        module: dotted name (or script stem) to import in the container; empty when ``serialized``.
        qualname: where the function stands in that module.
        file: path of the module inside the code bundle, as ``pkg/mod.py``; None when it is imported
            from the image.
        serialized: the function itself travels as a cloudpickle in blob ``function_blob``.
        function_blob: SHA-256 of that pickle.
        code_bundle: SHA-256 of the zip with the user's modules, put first on ``sys.path``.
        is_generator: the function yields.
        is_async: the function is a coroutine function or an async generator function.
        env: environment variables that win over the image's.
        cpu: cores requested, and the limit or None.
        memory: MiB requested, and the limit or None.
        ephemeral_disk: MiB, or None.
        timeout: seconds one input may run.
        startup_timeout: seconds a container may take to be ready; None means ``timeout``.
        retries: the user's retry policy, or None.
        min_containers: floor of warm containers.
        max_containers: ceiling, or None.
        buffer_containers: extra idle containers kept while the Function is active.
        scaledown_window: seconds an idle container lives.
        max_concurrent_inputs: inputs (or batches of them) one container runs at a time.
        target_concurrent_inputs: inputs per container that the autoscaler aims at, or None.
        batch_max_size: the most inputs of one batch; None: each input is a call of its own.
        batch_wait_ms: milliseconds a batch waits, from its first input on, to fill up.
        single_use_containers: a container ends after one input.
        gpu: the kinds of GPU that will do, the preferred one first; all of one count.
        region: datacenters to be placed in; empty means any.
        cloud: the ``cloud`` of the nodes' meta; empty means any.
        nonpreemptible: not to be ended for other jobs, nor on nodes that may vanish.
        scheduler: what else nodes must be, by their meta, or None.
        nomad: what Nomad is told besides, or None.
        proxy: the name of the egress that its containers have; empty for none.
        block_network: its code reaches no network.
        i6pn: its containers reach each other by addresses of their own.
        is_class: what is found at ``qualname`` is a class, and each call names one of its ``methods``.
        methods: the methods of a class that can be called, by name.
        parameters: its ``modal.parameter()`` fields.
        own_init: it has an ``__init__`` of its own, which takes any arguments.
        needs_parameters: it cannot be constructed without any.
        volumes: the Volumes that its containers see.
        network_file_systems: the NetworkFileSystems that they see.
        buckets: the buckets that its containers see.
        enable_memory_snapshot: its ``@enter(snap=True)`` hooks run before the others.
        restrict_modal_access: its containers may not be clients of the dispatcher.
        secrets: where its Secrets are; of two that have a variable, the later one's counts.
        scope: the only environments that its code may touch, none for all; the dispatcher says so, by who
            deployed it.
        schedule: when it is called by itself once it is deployed, or None.
        web: how it is served on the web, or None; of a class, its methods say.
        container_image: what a container runtime starts its containers from, as that finds it:
            ``registry/repository@sha256:…``, a tag, or an id on this machine; empty for processes of the
            node.
    """

    app: str
    name: str
    module: str = ""
    qualname: str = ""
    file: Optional[str] = None
    serialized: bool = False
    function_blob: Optional[str] = None
    code_bundle: Optional[str] = None
    is_generator: bool = False
    is_async: bool = False
    image: ImageSpec = field(default_factory=ImageSpec)
    env: Mapping[str, str] = field(default_factory=dict)
    cpu: Tuple[Optional[float], Optional[float]] = (None, None)
    memory: Tuple[Optional[int], Optional[int]] = (None, None)
    ephemeral_disk: Optional[int] = None
    timeout: float = 300.0
    startup_timeout: Optional[float] = None
    retries: Optional[RetrySpec] = None
    min_containers: int = 0
    max_containers: Optional[int] = None
    buffer_containers: int = 0
    scaledown_window: float = 60.0
    max_concurrent_inputs: int = 1
    target_concurrent_inputs: Optional[int] = None
    batch_max_size: Optional[int] = None
    batch_wait_ms: int = 0
    single_use_containers: bool = False
    gpu: Tuple[GPUOption, ...] = ()
    region: Tuple[str, ...] = ()
    cloud: str = ""
    nonpreemptible: bool = False
    scheduler: Optional[SchedulerSpec] = None
    nomad: Optional[PlacementSpec] = None
    proxy: str = ""
    block_network: bool = False
    i6pn: bool = False
    is_class: bool = False
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)
    parameters: Tuple[ParameterSpec, ...] = ()
    own_init: bool = False
    needs_parameters: bool = False
    volumes: Tuple[VolumeMount, ...] = ()
    network_file_systems: Tuple[NfsMount, ...] = ()
    buckets: Tuple[BucketMount, ...] = ()
    enable_memory_snapshot: bool = False
    restrict_modal_access: bool = False
    secrets: Tuple[SecretRef, ...] = ()
    scope: Tuple[str, ...] = ()
    schedule: Optional[ScheduleSpec] = None
    web: Optional[WebSpec] = None
    container_image: str = ""

    @property
    def served(self) -> Dict[str, WebSpec]:
        """What is served on the web, by method; a plain function's is under the empty name."""
        if self.web is not None:
            return {"": self.web}
        return {name: method.web for name, method in self.methods.items() if method.web is not None}

    @property
    def slots(self) -> int:
        """Inputs that one container may hold at a time to run them."""
        return self.max_concurrent_inputs * (self.batch_max_size or 1)

    @property
    def secret_refs(self) -> Tuple[SecretRef, ...]:
        """Where all is that a container gets from Secrets: its own, and those of its buckets."""
        of_buckets = [
            dataclasses.replace(bucket.secret, prefix=bucket_variables(index))
            for index, bucket in enumerate(self.buckets)
            if bucket.secret is not None
        ]
        return (*self.secrets, *of_buckets)

    def yields(self, method: str = "") -> bool:
        """Say whether the function, or this method of the class, is a generator."""
        if self.is_class:
            return method in self.methods and self.methods[method].is_generator
        return self.is_generator

    def to_dict(self) -> Dict[str, Any]:
        """Return the JSON object of this specification."""
        return dataclasses.asdict(self)

    @property
    def version_key(self) -> str:
        """The content key of the whole specification: containers of equal keys are interchangeable."""
        return content_key(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FunctionSpec":
        """Read the JSON object of a specification; unknown fields are ignored."""
        known = _known(cls, data)
        if "image" in known:
            known["image"] = ImageSpec.from_dict(known["image"])
        if known.get("retries"):
            known["retries"] = RetrySpec(**_known(RetrySpec, known["retries"]))
        if known.get("scheduler"):
            known["scheduler"] = SchedulerSpec.from_dict(known["scheduler"])
        if known.get("nomad"):
            known["nomad"] = PlacementSpec.from_dict(known["nomad"])
        if known.get("schedule"):
            known["schedule"] = ScheduleSpec.from_dict(known["schedule"])
        methods = known.get("methods") or {}
        known["methods"] = {k: MethodSpec.from_dict(v) for k, v in methods.items()}
        if known.get("web"):
            known["web"] = WebSpec.from_dict(known["web"])
        known["parameters"] = tuple(
            ParameterSpec(**_known(ParameterSpec, x)) for x in known.get("parameters") or ()
        )
        known["gpu"] = tuple(GPUOption(**_known(GPUOption, x)) for x in known.get("gpu") or ())
        known["secrets"] = tuple(map(_secret, known.get("secrets") or ()))
        known["buckets"] = tuple(
            BucketMount(
                **{**_known(BucketMount, x), "secret": _secret(x["secret"]) if x.get("secret") else None}
            )
            for x in known.get("buckets") or ()
        )
        known["volumes"] = tuple(VolumeMount(**_known(VolumeMount, x)) for x in known.get("volumes") or ())
        known["network_file_systems"] = tuple(
            NfsMount(**_known(NfsMount, x)) for x in known.get("network_file_systems") or ()
        )
        for name in ("cpu", "memory", "region", "scope"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)


def _secret(data: Mapping[str, Any]) -> SecretRef:
    return SecretRef(**{**_known(SecretRef, data), "required": tuple(data.get("required") or ())})
