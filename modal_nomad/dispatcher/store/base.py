"""The contract of a store: what is promised to survive a dispatcher's end.

A writing method returns after its rows are on the disk; many callers share one commit. Nothing here
blocks the event loop.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modal_nomad.dispatcher.store.blob_holders import BlobHolderStore
from modal_nomad.dispatcher.store.images import ImageStore
from modal_nomad.dispatcher.store.leases import LeaseStore
from modal_nomad.dispatcher.store.objects import ObjectStore
from modal_nomad.dispatcher.store.schedules import ScheduleStore
from modal_nomad.dispatcher.store.volumes import VolumeStore


class StoreError(Exception):
    """The store cannot be used; the text is one line that names the remedy."""


class StoreFull(StoreError):
    """There is no space for what is to be written."""


class StoreBusy(StoreError):
    """Another dispatcher has the store."""


def hash_secret(secret: str) -> str:
    """Return what is stored of a token's secret.

    A plain SHA-256 is enough, and fast: secrets are drawn by us with full entropy, never chosen.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


class References(NamedTuple):
    """The blobs that a store names; of these, the manifests, which name others."""

    names: set[str]
    manifests: set[str]


@dataclass(frozen=True)
class AppRecord:
    """An App. ``state`` is ``ephemeral``, ``detached``, ``deployed`` or ``stopped``."""

    app_id: str
    name: str | None
    description: str
    environment: str
    state: str
    version: int
    created_at: float
    stopped_at: float | None = None


@dataclass(frozen=True)
class VersionRecord:
    """One publication of an App."""

    app_id: str
    version: int
    deployed_at: float
    client: str = ""
    deployed_by: str = ""
    tag: str = ""


@dataclass(frozen=True)
class FunctionRecord:
    """A Function as last published: its specification and its rendered job.

    ``autoscaler`` holds the settings that were changed since, by name.
    """

    function_id: str
    app_id: str
    name: str
    environment: str
    version: int
    spec: Mapping[str, Any]
    job: Mapping[str, Any]
    autoscaler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CallRecord:
    """A durable call: ``num_inputs`` is None while its caller may still add inputs, ``method`` a class's."""

    call_id: str
    function_id: str
    kind: str
    created_at: float
    num_inputs: int | None = None
    expires_at: float | None = None
    method: str = ""
    environment: str = ""


@dataclass(frozen=True)
class VariantRecord:
    """A Function made from another at run time.

    Attributes:
        function_id: its own id.
        parent_id: what it was made from.
        app_id: the parent's App.
        params: the serialized constructor parameters of a class, or None.
        spec: its specification when it has options of its own; None follows the parent's.
        job: the rendered job that goes with ``spec``.
        autoscaler: settings that were changed since, by name.
    """

    function_id: str
    parent_id: str
    app_id: str
    params: bytes | None = None
    spec: Mapping[str, Any] | None = None
    job: Mapping[str, Any] | None = None
    autoscaler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredInput:
    """An input not yet answered.

    Attributes:
        index: its place in the call.
        payload: the packed arguments.
        flags: as on the wire.
        losses: how many containers were lost under it.
        attempts: how often it was run again by its Function's ``retries``.
    """

    index: int
    payload: bytes
    flags: int = 0
    losses: int = 0
    attempts: int = 0


@dataclass(frozen=True)
class StoredOutput:
    """The answer to one input; ``status`` as on the wire. ``task_id`` is written and not read back."""

    index: int
    status: int
    payload: bytes
    flags: int = 0
    task_id: str = ""


class GraphCall(NamedTuple):
    """A call in a call graph, made by the input ``parent`` (``in-…``) of ``parent_call``."""

    call_id: str
    parent_call: str
    parent: str
    name: str
    module: str


class GraphInput(NamedTuple):
    """An input in a call graph; ``status`` is None while it is pending."""

    call_id: str
    input_index: int
    status: int | None
    task_id: str


@dataclass(frozen=True)
class PendingCall:
    """A call with a page of its unanswered inputs; a large call comes in several pages, in order."""

    call: CallRecord
    inputs: Sequence[StoredInput]


@dataclass(frozen=True)
class TokenRecord:
    """A caller's token; the secret is kept hashed. No ``environments`` means all of them."""

    token_id: str
    secret_hash: str
    environments: tuple[str, ...] = ()
    label: str = ""
    created_at: float = 0.0


class Store(ObjectStore, VolumeStore, ScheduleStore, ImageStore, LeaseStore, BlobHolderStore):
    """Durable state. All methods raise StoreError when the medium fails them.

    Attributes:
        shared: whether other dispatchers may wait for it.
    """

    shared: bool = False

    @abc.abstractmethod
    async def open(self) -> None:
        """Open, create or migrate. Raises StoreError for what is corrupt, newer or in use."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish what was accepted, then release everything. Closing twice is no error."""

    # Apps and Functions

    @abc.abstractmethod
    async def publish(
        self, app: AppRecord, version: VersionRecord | None, functions: Sequence[FunctionRecord]
    ) -> None:
        """Write an App, its new version and its whole set of Functions, at once; others are dropped."""

    @abc.abstractmethod
    async def set_app_state(self, app_id: str, state: str, stopped_at: float | None = None) -> None:
        """Change an App's state."""

    @abc.abstractmethod
    async def app(self, app_id: str) -> AppRecord | None:
        """Return an App by id."""

    @abc.abstractmethod
    async def apps(self, environment: str | None = None) -> list[AppRecord]:
        """Return the Apps of an environment, or all of them, newest first."""

    @abc.abstractmethod
    async def apps_named(self, name: str, environment: str) -> list[AppRecord]:
        """Return the Apps that bear a name, or that description, newest first."""

    @abc.abstractmethod
    async def versions(self, app_id: str) -> list[VersionRecord]:
        """Return an App's versions, newest first."""

    @abc.abstractmethod
    async def functions(self, app_id: str | None = None) -> list[FunctionRecord]:
        """Return an App's Functions by name, or those of every App that is not stopped."""

    @abc.abstractmethod
    async def function(self, function_id: str) -> FunctionRecord | None:
        """Return a Function by id."""

    @abc.abstractmethod
    async def set_autoscaler(self, function_id: str, settings: Mapping[str, Any]) -> None:
        """Keep the autoscaler settings changed since the Function was published; a publication drops them."""

    @abc.abstractmethod
    async def function_ids(self, app_name: str, environment: str) -> dict[str, str]:
        """Return name to id of every Function ever deployed under an App's name."""

    # Variants of Functions

    @abc.abstractmethod
    async def add_variant(self, variant: VariantRecord) -> None:
        """Keep a variant; one that is known already is no error."""

    @abc.abstractmethod
    async def variants(self) -> list[VariantRecord]:
        """Return every variant, parents before what was made from them."""

    @abc.abstractmethod
    async def remove_variants(self, function_ids: Sequence[str]) -> None:
        """Forget variants; unknown ones are no error."""

    # Durable calls

    @abc.abstractmethod
    async def add_inputs(
        self,
        call_id: str,
        function_id: str,
        inputs: Sequence[StoredInput],
        *,
        kind: str = "spawn",
        num_inputs: int | None = None,
        expires_at: float | None = None,
        method: str = "",
        environment: str = "",
    ) -> Collection[int]:
        """Accept inputs of a call, making the call on its first ones.

        The same input twice, or one already answered, changes nothing: callers re-send.
        ``num_inputs`` says that the call is complete, and with how many inputs.

        Returns:
            Which of these inputs are answered already, by index.
        """

    @abc.abstractmethod
    async def add_outputs(
        self, call_id: str, outputs: Sequence[StoredOutput], *, expires_at: float | None = None
    ) -> None:
        """Keep answers; the first answer to an input stands. Unknown calls are ignored.

        ``expires_at`` puts off the call's expiry.
        """

    @abc.abstractmethod
    async def set_tries(self, call_id: str, tries: Mapping[int, tuple[int, int]]) -> None:
        """Record the ``losses`` and ``attempts`` of unanswered inputs, by index."""

    @abc.abstractmethod
    async def call(self, call_id: str) -> CallRecord | None:
        """Return a call."""

    @abc.abstractmethod
    async def count_inputs(self, call_id: str) -> int:
        """Return how many inputs of a call were accepted, answered or not."""

    @abc.abstractmethod
    def load_pending(self) -> AsyncIterator[PendingCall]:
        """Yield every call that has unanswered inputs, oldest first, with these inputs by index."""

    @abc.abstractmethod
    async def outputs(self, call_id: str, indexes: Sequence[int] | None = None) -> list[StoredOutput]:
        """Return a call's answers by index, all or those asked for; what has none is absent."""

    @abc.abstractmethod
    async def add_items(
        self, call_id: str, index: int, first: int, items: Sequence[tuple[bytes, int]]
    ) -> None:
        """Keep what a generator yielded (payload, flags), the first with number ``first``.

        A number twice changes nothing: the first one stands. Unknown calls are ignored.
        """

    @abc.abstractmethod
    async def items(self, call_id: str, index: int, start: int, limit: int) -> list[tuple[int, bytes, int]]:
        """Return what a generator yielded (number, payload, flags) from a number on, in order."""

    @abc.abstractmethod
    async def count_items(self, call_id: str) -> dict[int, int]:
        """Return, by input, how many items are there from number 0 on without a gap."""

    # Call graphs

    @abc.abstractmethod
    async def add_graph(self, calls: Sequence[GraphCall], inputs: Sequence[GraphInput]) -> None:
        """Keep calls that inputs made, and what is known of their inputs by now."""

    @abc.abstractmethod
    async def graph(self, call_id: str, limit: int) -> tuple[list[GraphCall], list[GraphInput]]:
        """Return a call and all below it, parents first, and their inputs; nothing for an unknown call.

        The first call's names are empty when no input made it. ``limit`` bounds both lists.
        """

    @abc.abstractmethod
    async def delete_call(self, call_id: str) -> None:
        """Forget a call with its inputs and outputs."""

    @abc.abstractmethod
    async def expire(self, now: float) -> list[str]:
        """Forget the calls whose time has passed and return their ids.

        One with an unanswered input stays, whatever its time: that input was accepted.
        """

    @abc.abstractmethod
    async def referenced_blobs(self) -> References:
        """Return the blobs that anything names which is kept: Functions, inputs, outputs; or a few more."""

    # Tokens

    @abc.abstractmethod
    async def add_token(self, token: TokenRecord) -> None:
        """Keep a token, replacing one of the same id."""

    @abc.abstractmethod
    async def token(self, token_id: str) -> TokenRecord | None:
        """Return a token."""

    @abc.abstractmethod
    async def tokens(self) -> list[TokenRecord]:
        """Return every token, oldest first."""

    @abc.abstractmethod
    async def remove_token(self, token_id: str) -> None:
        """Revoke a token; an unknown one is no error."""
