"""What goes into the call engine (events) and what comes out (commands).

The engine is a pure state machine: the rim (sockets, store, engines) turns what happens into one
event, calls ``CallEngine.handle(event, now)`` and carries out the commands it gets, in order.
One object stands for a whole frame, never for one input; inputs inside are plain tuples.

Statuses of outputs are those of the wire: 0 success, 1 failure, 2 init failure, 3 terminated,
4 timeout, 5 internal. Payloads of 3, 4 and 5 made by the engine are UTF-8 text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from modal_nomad.wire.frames import FAILURE as FAILURE
from modal_nomad.wire.frames import INIT_FAILURE as INIT_FAILURE
from modal_nomad.wire.frames import INTERNAL as INTERNAL
from modal_nomad.wire.frames import SUCCESS as SUCCESS
from modal_nomad.wire.frames import TERMINATED as TERMINATED
from modal_nomad.wire.frames import TIMEOUT as TIMEOUT
from modal_nomad.wire.spec import FunctionSpec, RetrySpec

SubmittedInput: TypeAlias = tuple[int, bytes, int]
"""index, payload, flags"""
LeasedInput: TypeAlias = tuple[int, str, int, bytes, int]
"""lease, call id, index, payload, flags"""
ReturnedOutput: TypeAlias = tuple[int, int, bytes, int]
"""lease, status, payload, flags"""
Output: TypeAlias = tuple[int, int, bytes, int]
"""index, status, payload, flags"""
Item: TypeAlias = tuple[bytes, int]
"""What a generator yielded: payload, flags"""
Tries: TypeAlias = tuple[int, int]
"""of one input: containers lost under it, runs that failed and were tried again"""


BUILD_SECONDS = 1800.0
"""The first container of a node builds its image before it is ready; ``timeout`` is not meant for that."""


@dataclass(frozen=True, slots=True)
class FunctionPolicy:
    """What the engine has to know of one Function's specification.

    Attributes:
        version_key: containers of equal keys are interchangeable.
        timeout: seconds one input may run.
        startup_timeout: seconds a placed container may take to be ready; None means ``timeout``.
        retries: the user's policy for failures and timeouts, or None.
        min_containers: floor of warm containers.
        max_containers: ceiling, or None for the engine's default.
        buffer_containers: extra containers kept while the Function is active.
        scaledown_window: seconds an idle container lives.
        max_concurrent_inputs: inputs one container runs at a time.
        batch_size: inputs that one container takes together, and that are not spread over several.
        target_inputs: inputs per container that the autoscaler aims at; None means the maximum.
        single_use: a container ends after one input.
        cpu: cores that one container asks for, or None.
        linger: seconds that a container may take requests after it was told to end.
    """

    version_key: str
    timeout: float = 300.0
    startup_timeout: float | None = None
    retries: RetrySpec | None = None
    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = 60.0
    max_concurrent_inputs: int = 1
    batch_size: int = 1
    target_inputs: int | None = None
    single_use: bool = False
    cpu: float | None = None
    linger: float = 0.0

    @classmethod
    def from_spec(cls, spec: FunctionSpec, version_key: str | None = None) -> FunctionPolicy:
        """Take from a specification what concerns the engine; computes the version key when not given."""
        startup = spec.startup_timeout
        if startup is None and spec.image.layers:
            startup = max(spec.timeout, BUILD_SECONDS)
        return cls(
            version_key=version_key or spec.version_key,
            timeout=spec.timeout,
            startup_timeout=startup,
            retries=spec.retries,
            min_containers=spec.min_containers,
            max_containers=spec.max_containers,
            buffer_containers=spec.buffer_containers,
            scaledown_window=spec.scaledown_window,
            max_concurrent_inputs=spec.slots,
            batch_size=spec.batch_max_size or 1,
            target_inputs=spec.target_concurrent_inputs,
            single_use=spec.single_use_containers,
            cpu=spec.cpu[0],
        )


# ---- events: Functions


@dataclass(frozen=True, slots=True)
class FunctionAdded:
    """A Function may be called, or its policy changed.

    Said again with another version, its old containers are drained; with the same one they stay.
    """

    function_id: str
    policy: FunctionPolicy


@dataclass(frozen=True, slots=True)
class FunctionRemoved:
    """A Function is gone: its inputs end TERMINATED with ``reason``, its containers are stopped."""

    function_id: str
    reason: str


# ---- events: calls


# Those of every call are named tuples, made in a third of the time.
class InputsSubmitted(NamedTuple):
    """Inputs of one call, idempotent by index.

    Attributes:
        durable: the call outlives its owner; its outputs are kept until ``OutputsStored`` or ``CallClosed``.
        owner: the client whose loss cancels a call that is not durable. For a call made inside a
            container pass that container's id: so the engine knows which containers wait for a child.
        last: no inputs beyond these will come, so that ``CallDone`` can be said.
        method: which method of a class is called; empty for a plain function.
    """

    call_id: str
    function_id: str
    durable: bool
    owner: str | None
    inputs: Sequence[SubmittedInput]
    last: bool = False
    method: str = ""


@dataclass(frozen=True, slots=True)
class CallCancelled:
    """Queued and running inputs end TERMINATED; with ``terminate_containers`` the latter's containers too."""

    call_id: str
    terminate_containers: bool = False


class CallClosed(NamedTuple):
    """Nobody will ask again: outputs are forgotten.

    Pending inputs of a call that is not durable are dropped without output. A durable call runs on to
    its end (its outputs are still delivered, for the store) and is forgotten then.
    """

    call_id: str


@dataclass(frozen=True, slots=True)
class OutputsAcked:
    """The caller has these outputs. Forgotten at once, unless the call is durable (nothing happens then)."""

    call_id: str
    indexes: Sequence[int]


@dataclass(frozen=True, slots=True)
class OutputsStored:
    """The store has these outputs of a durable call: the rim answers for them from now on.

    Also said after a restart, after the call's ``InputsSubmitted`` (which may hold no inputs), so that
    a caller's re-sent inputs are known to be done.
    """

    call_id: str
    indexes: Sequence[int]


@dataclass(frozen=True, slots=True)
class TriesKnown:
    """What became of pending inputs before a restart, by index."""

    call_id: str
    tries: Mapping[int, Tries]


@dataclass(frozen=True, slots=True)
class CallAttached:
    """A caller came (back): all outputs that are held are delivered again."""

    call_id: str


@dataclass(frozen=True, slots=True)
class OwnerLost:
    """A client is gone for good: its calls that are not durable are cancelled and forgotten."""

    owner: str


# ---- events: containers


@dataclass(frozen=True, slots=True)
class ContainersStarting:
    """The answer to ``StartContainers``: the ids the rim gave (fewer when some could not be started)."""

    function_id: str
    version_key: str
    container_ids: Sequence[str]
    asked: int | None = None
    """The command's count; None when all were started."""


@dataclass(frozen=True, slots=True)
class ContainerPending:
    """A starting container waits to be placed, and why; an empty reason says that it is placed now."""

    container_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ContainerFailed:
    """A container ended. Before it was ready this counts as a failed start; later it equals WorkerLost."""

    container_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker takes inputs. A container the engine does not know (after a restart) is adopted."""

    container_id: str
    function_id: str
    version_key: str
    slots: int = 1


@dataclass(frozen=True, slots=True)
class WorkerInitFailed:
    """User code could not be loaded; ``payload`` is the packed exception. The worker ends by itself."""

    container_id: str
    payload: bytes


class OutputsReturned(NamedTuple):
    """A batch of outputs of one worker.

    Attributes:
        busy_seconds: of user code spent on it.
        usage: seconds of a processor that the container's inputs wanted, and the seconds of user code they
            wanted them in, since it last said so; None when it does not say.
    """

    container_id: str
    outputs: Sequence[ReturnedOutput]
    busy_seconds: float
    usage: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """What a worker's inputs that run on wanted of a processor, and in how many seconds."""

    container_id: str
    usage: tuple[float, float]


@dataclass(frozen=True, slots=True)
class CapacityChanged:
    """The nodes that containers are placed on have ``cores``.

    Attributes:
        default_max_containers: the ceiling of Functions that name none, from now on.
    """

    cores: int
    default_max_containers: int


@dataclass(frozen=True, slots=True)
class ItemsProduced:
    """What one generator input yielded next; the first of the items has number ``first``."""

    container_id: str
    lease: int
    first: int
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class ItemsTaken:
    """The reader of a generator has its first ``count`` items; of a durable call: the store has them."""

    call_id: str
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class InputsGivenBack:
    """Inputs that a worker does not answer.

    Prefetched ones that it did not start, because a long input is ahead of them or it drains; or, with
    ``begun``, running ones that were interrupted with their container: that counts as a loss.
    """

    container_id: str
    leases: Sequence[int]
    begun: bool = False


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker ends after what it runs now, by its own or the node's will."""

    container_id: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's connection is gone, expected (after a drain or a stop) or not. Repeats do no harm.

    ``error`` is what the one input that ran there gets, when its own work ended the container.
    """

    container_id: str
    reason: str
    error: bytes = b""


@dataclass(frozen=True, slots=True)
class WebLoad:
    """Requests to a Function's endpoints, which go past the engine: what containers are started for.

    Attributes:
        waiting: those that no container has room for.
        running: those that each container has; a container that is absent has none.
        finished: how many ended since this was last said.
        seconds: how long these took together.
    """

    function_id: str
    waiting: int
    running: Mapping[str, int]
    finished: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of ``next_wakeup()`` has come. Early or repeated ticks do no harm."""


Event: TypeAlias = (
    FunctionAdded
    | FunctionRemoved
    | InputsSubmitted
    | CallCancelled
    | CallClosed
    | OutputsAcked
    | OutputsStored
    | TriesKnown
    | CallAttached
    | OwnerLost
    | ContainersStarting
    | ContainerPending
    | ContainerFailed
    | WorkerReady
    | WorkerInitFailed
    | OutputsReturned
    | ItemsProduced
    | ItemsTaken
    | WorkerUsage
    | CapacityChanged
    | InputsGivenBack
    | WorkerDraining
    | WorkerLost
    | WebLoad
    | Tick
)


# ---- commands


class Lease(NamedTuple):
    """Send these inputs to a worker, in one frame."""

    container_id: str
    inputs: list[LeasedInput]


class Deliver(NamedTuple):
    """Pass outputs to the call's owner, and to the store when the call is durable."""

    call_id: str
    outputs: list[Output]


@dataclass(frozen=True, slots=True)
class DeliverItems:
    """Pass on what a generator yielded, as ``Deliver``; the first of the items has number ``first``."""

    call_id: str
    index: int
    first: int
    items: list[Item]


@dataclass(frozen=True, slots=True)
class GrantItems:
    """Tell the worker how many of a generator's items its reader has taken."""

    container_id: str
    lease: int
    taken: int


@dataclass(frozen=True, slots=True)
class CallDone:
    """Each input of a call whose last input is known has its output (delivered before this)."""

    call_id: str


@dataclass(frozen=True, slots=True)
class StartContainers:
    """Start containers of the Function's version; answer with ``ContainersStarting``, whatever happens."""

    function_id: str
    version_key: str
    count: int


@dataclass(frozen=True, slots=True)
class DrainContainer:
    """Tell the worker to finish what it runs, give back what it did not start, and end with code 0."""

    container_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopContainer:
    """End a container: ``force`` kills it now, else it is asked (signal, then the kill timeout).

    Answer with ``WorkerLost`` or ``ContainerFailed`` when it has ended.
    """

    container_id: str
    force: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CancelLeases:
    """Tell the worker to cancel these inputs; it still answers each of them (or has answered)."""

    container_id: str
    leases: list[int]


@dataclass(frozen=True, slots=True)
class KeepTries:
    """Put into the store what became of inputs of a durable call until now, by index."""

    call_id: str
    tries: Mapping[int, Tries]


@dataclass(frozen=True, slots=True)
class FailRequests:
    """Answer the requests that wait for a container of the Function: it does not start."""

    function_id: str
    reason: str


Command: TypeAlias = (
    Lease
    | Deliver
    | DeliverItems
    | GrantItems
    | CallDone
    | StartContainers
    | DrainContainer
    | StopContainer
    | CancelLeases
    | KeepTries
    | FailRequests
)
