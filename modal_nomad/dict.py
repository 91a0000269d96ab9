"""Dicts: keys and values that outlive programs and are shared between them."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar

from . import exception
from ._bridge import blocking, blocking_function, blocking_function_context, blocking_gen, io
from ._invocation import blob_payload
from ._object_manager import ObjectManager
from ._renamed import renamed
from .object import Object, _by_id
from .types import DictInfo, described
from .wire import frames
from .wire.serialization import dumps, loads

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Dict"]

MAX_KEY_BYTES = 256 << 10
MAX_VALUE_BYTES = 100 << 20
_BATCH_BYTES = 4 << 20
_BATCH_ENTRIES = 1000
_MISSING: Any = object()
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class Dict(Object):
    """A dictionary on the server, shared by every program and container that knows its name.

    Keys and values are whatever can be pickled. An entry is removed 30 days after it was last written.
    Keys are compared as they are pickled: ``1``, ``1.0`` and ``True`` are three keys.

    Example:
        >>> with modal.Dict.ephemeral() as scores:
        ...     scores["ada"] = 3
        ...     scores["ada"], "bob" in scores, scores.get("bob", 0)
        (3, False, 0)
    """

    kind = "dict"
    label = "Dict"
    objects: ClassVar[ObjectManager[Dict]]
    _data: Mapping[Any, Any] | None = None

    @staticmethod
    @renamed("label", "name")
    def from_name(
        name: str,
        data: Mapping[Any, Any] | None = None,
        namespace: Any = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
        *,
        client: Client | None = None,
    ) -> Dict:
        """Refer to a Dict by name; nothing is asked of the server until it is used.

        Args:
            name: its name in the environment.
            data: what is put into it when it is created. Deprecated: use ``update``.
            namespace: ignored; older code passes it.
            environment_name: the environment, or the configured one.
            create_if_missing: whether it is created where there is none.
            client: the connection, or the configured one.

        Raises:
            InvalidError: for a name that cannot be.
            NotFoundError: on first use, when there is none.

        Example:
            >>> settings = modal.Dict.from_name("settings", create_if_missing=True)
            >>> settings["colour"] = "green"
            >>> modal.Dict.from_name("settings")["colour"]
            'green'
            >>> modal.Dict.delete("settings")
        """
        made = Dict._named(name, environment_name, create_if_missing=create_if_missing, client=client)
        made._data = data
        return made

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def lookup(
        name: str,
        data: Mapping[Any, Any] | None = None,
        namespace: Any = None,
        client: Client | None = None,
        environment_name: str | None = None,
        create_if_missing: bool = False,
    ) -> Dict:
        """Deprecated form of ``from_name(...).hydrate()``."""
        Dict._deprecated_lookup()
        made = Dict.from_name(name, data, None, environment_name, create_if_missing, client=client)
        await made._target()
        return made

    @staticmethod
    def from_id(object_id: str, client: Client | None = None) -> Dict:
        """Refer to a Dict by its id.

        Example:
            >>> with modal.Dict.ephemeral() as one:
            ...     one["a"] = 1
            ...     modal.Dict.from_id(one.object_id)["a"]
            1
        """
        made = _by_id(Dict, object_id)
        made._client = client
        return made

    @staticmethod
    @blocking_function_context
    async def ephemeral(
        data: Mapping[Any, Any] | None = None,
        client: Client | None = None,
        environment_name: str | None = None,
        _heartbeat_sleep: float = 300.0,
    ) -> AsyncIterator[Dict]:
        """Create a Dict without a name, which is gone at the end of the block, or with this program.

        Args:
            data: what is in it at first.
            client: the connection, or the configured one.
            environment_name: the environment, or the configured one.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     d["a"]
            1
        """
        body = Dict._ephemeral(client, environment_name)
        try:
            async for made in body:
                if data:
                    await made._put_all(data.items())
                yield made
        finally:
            await body.aclose()  # type: ignore[attr-defined]

    @staticmethod
    @blocking_function
    @renamed("label", "name")
    async def delete(name: str, *, client: Client | None = None, environment_name: str | None = None) -> None:
        """Delete a named Dict with all that is in it.

        Raises:
            NotFoundError: there is none of that name.

        Example:
            >>> _ = modal.Dict.from_name("old", create_if_missing=True).hydrate()
            >>> modal.Dict.delete("old")
        """
        await Dict._delete(name, client, environment_name)

    if TYPE_CHECKING:

        @blocking
        async def hydrate(self, client: Client | None = None) -> Dict: ...

    @blocking
    async def info(self) -> DictInfo:
        """Return its name, when it was made and by whom.

        Example:
            >>> with modal.Dict.ephemeral() as d:
            ...     d.info().name is None
            True
        """
        info: DictInfo = described(DictInfo, await self._described())
        return info

    # --- entries ----------------------------------------------------------------------------------

    @blocking
    async def get(self, key: Any, default: Any = None) -> Any:
        """Return a key's value, or ``default`` where there is none.

        Example:
            >>> with modal.Dict.ephemeral() as d:
            ...     d.get("a"), d.get("a", 1)
            (None, 1)
        """
        return await self._get(key, default)

    @blocking
    async def contains(self, key: Any) -> bool:
        """Tell whether a key is there.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     d.contains("a")
            True
        """
        value, _ = await self._ask("dict.contains", {}, [_key(key)])
        return bool(value["found"])

    @blocking
    async def len(self) -> int:
        """Count the entries, expired ones that are not yet removed included.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     d.len()
            1
        """
        value, _ = await self._ask("dict.len", {})
        return int(value["len"])

    @blocking
    async def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Write an entry; returns whether it was written.

        Args:
            key: its key.
            value: its value.
            skip_if_exists: leave an entry of that key as it is. Of several that try at once, one writes.

        Raises:
            RequestSizeError: the value is larger than 100 MiB, or the key than 256 KiB.

        Example:
            >>> with modal.Dict.ephemeral() as d:
            ...     d.put("lock", "me", skip_if_exists=True), d.put("lock", "you", skip_if_exists=True)
            (True, False)
        """
        return await self._put_all([(key, value)], skip_if_exists) > 0

    @blocking
    async def update(self, other: Any = None, /, **kwargs: Any) -> None:
        """Write several entries, of a mapping or of pairs, and of keywords.

        Example:
            >>> with modal.Dict.ephemeral() as d:
            ...     d.update({1: "one"}, two="zwei")
            ...     sorted(d.values())
            ['one', 'zwei']
        """
        pairs: Iterable[Any] = () if other is None else other
        if hasattr(other, "keys"):
            pairs = [(key, other[key]) for key in other.keys()]  # noqa: SIM118 (what a mapping promises)
        await self._put_all([*pairs, *kwargs.items()])

    @blocking
    async def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove an entry and return its value. Of several that try at once, one gets it.

        Raises:
            KeyError: the key is not there, and there is no ``default``.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     d.pop("a"), d.pop("a", None)
            (1, None)
        """
        value, payloads = await self._ask("dict.pop", {}, [_key(key)])
        if value["found"]:
            return await self._value(payloads[0], value["flags"])
        if default is _MISSING:
            raise KeyError(key)
        return default

    @blocking
    async def clear(self) -> None:
        """Remove all entries.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     d.clear()
            ...     d.len()
            0
        """
        await self._ask("dict.clear", {})

    @blocking_gen
    async def keys(self) -> AsyncIterator[Any]:
        """Yield the keys, in no order that can be relied on.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     list(d.keys())
            ['a']
        """
        async for entry in self._entries("keys"):
            yield loads(entry[0])

    @blocking_gen
    async def values(self) -> AsyncIterator[Any]:
        """Yield the values, in no order that can be relied on.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     list(d.values())
            [1]
        """
        async for entry in self._entries("values"):
            yield await self._value(entry[1], entry[2])

    @blocking_gen
    async def items(self) -> AsyncIterator[tuple[Any, Any]]:
        """Yield pairs of key and value, in no order that can be relied on.

        Example:
            >>> with modal.Dict.ephemeral({"a": 1}) as d:
            ...     list(d.items())
            [('a', 1)]
        """
        async for pair in self._pairs(loads):
            yield pair

    @blocking_gen
    async def _items(self, read: Callable[[bytes], Any]) -> AsyncIterator[tuple[Any, Any]]:
        """Yield pairs that ``read`` makes of a key's and a value's bytes."""
        async for pair in self._pairs(read):
            yield pair

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    # ---

    async def _found(self, client: Client, created: bool) -> None:
        if created and self._data:
            await self._put_all(self._data.items())

    async def _ask(
        self, method: str, args: dict[str, Any], payloads: list[bytes] | None = None
    ) -> tuple[Any, list[bytes]]:
        client, object_id = await self._target()
        return await client._ask(method, {"object_id": object_id, **args}, payloads or ())

    async def _get(self, key: Any, default: Any) -> Any:
        value, payloads = await self._ask("dict.get", {}, [_key(key)])
        if not value["found"]:
            return default
        return await self._value(payloads[0], value["flags"])

    async def _value(self, payload: bytes, flags: int, read: Callable[[bytes], Any] = loads) -> Any:
        client, _ = await self._target()
        return read(await blob_payload(client, payload, flags))

    async def _pairs(self, read: Callable[[bytes], Any]) -> AsyncIterator[tuple[Any, Any]]:
        async for key, payload, flags in self._entries("items"):
            yield read(key), await self._value(payload, flags, read)

    async def _put_all(self, pairs: Iterable[tuple[Any, Any]], skip_if_exists: bool = False) -> int:
        client, _ = await self._target()
        written, size = 0, 0
        flags: list[int] = []
        payloads: list[bytes] = []

        async def send() -> int:
            args = {"flags": flags, "skip_if_exists": skip_if_exists}
            return int((await self._ask("dict.put", args, payloads))[0]["written"])

        for key, value in pairs:
            packed, data, flag = _key(key), dumps(value), 0
            if len(data) > MAX_VALUE_BYTES:
                raise exception.RequestSizeError(
                    f"the value of {key!r:.80} has {len(data)} bytes, a Dict takes {MAX_VALUE_BYTES} at most:"
                    " keep large data in a Volume"
                )
            if len(data) > frames.INLINE_LIMIT:
                data, flag = (await io(client._put_blob(data))).encode(), frames.FLAG_BLOB
            more = len(packed) + len(data)
            if flags and (size + more > _BATCH_BYTES or len(flags) == _BATCH_ENTRIES):
                written += await send()
                flags, payloads, size = [], [], 0
            flags.append(flag)
            payloads += (packed, data)
            size += more
        return written + (await send() if flags else 0)

    async def _entries(self, what: str) -> AsyncIterator[tuple[bytes, bytes, int]]:
        after, done = 0, False
        while not done:
            value, payloads = await self._ask("dict.entries", {"after": after, "what": what})
            after, done = value["after"], value["done"]
            flags = value["flags"]
            step = 2 if what == "items" else 1
            for position, flag in enumerate(flags):
                first, last = payloads[position * step], payloads[position * step + step - 1]
                yield first, last, flag


Dict.objects = ObjectManager(Dict)


def _key(key: Any) -> bytes:
    data = _plain_key(key) if _is_plain(key) else dumps(key)
    if len(data) > MAX_KEY_BYTES:
        raise exception.RequestSizeError(
            f"a key of {len(data)} bytes is too large, a Dict takes {MAX_KEY_BYTES} at most: use its hash"
        )
    return data


def _is_plain(key: Any) -> bool:
    return type(key) in _PLAIN or (type(key) is tuple and all(map(_is_plain, key)))


def _plain_key(key: Any) -> bytes:
    # Without a memo: equal keys give equal bytes, whether or not they share parts.
    buffer = BytesIO()
    pickler = pickle.Pickler(buffer, 5)
    pickler.fast = True
    pickler.dump(key)
    return buffer.getvalue()
