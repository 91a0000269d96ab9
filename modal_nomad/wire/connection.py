"""The SDK's one connection to a dispatcher, on asyncio and the standard library alone.

It keeps what the dispatcher has not answered: requests and inputs. When the socket breaks it connects
again and sends them again under the same ids, so a restarted dispatcher loses nothing of ours.
"""

import asyncio
import os
import threading
from time import monotonic
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from . import frames, websocket
from ._call import Call, Output
from ._client_socket import Socket
from ._direct import Direct
from ._requests import Asked, LoopAsked, Requests
from .address import Address, parse_address
from .input_frames import Input, batches, inputs_frame, waited_frame

__all__ = ["Call", "Connection", "Output", "Refused"]

_SILENCE = 75.0


class Refused(Exception):
    """The dispatcher does not want us: the name of an exception class and its text."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Connection:
    """Lives on one event loop; ``submit``, ``ask`` and what ends these may be called from other threads.

    Args:
        address: gives the server URL and the bearer token, and may start the server first; it is
            awaited before every attempt.
        hello: the hello frame's fields.
        retry_for: seconds of vain attempts after which everything unanswered fails.
        on_event: takes log and progress frames.
    """

    def __init__(
        self,
        address: Callable[[], Awaitable[Tuple[str, str]]],
        hello: Mapping[str, Any],
        *,
        retry_for: float = 60.0,
        on_event: Optional[Callable[[frames.Header, List[bytes]], None]] = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.welcome: frames.Header = {}
        self.closed = False
        self._address = address
        self._hello = dict(hello)
        self._retry_for = retry_for
        self._on_event = on_event
        self._protocol: Optional[Socket] = None
        self._ready = False
        self._key: Optional[bytes] = None
        self._task: Optional["asyncio.Task[None]"] = None
        self._welcomed: Optional["asyncio.Future[None]"] = None
        self._requests = Requests(self.loop)
        self._write_lock = threading.Lock()
        self._thread = threading.get_ident()
        self._calls: Dict[str, Call] = {}
        self._ended: List[str] = []
        self._flush_at: Optional[asyncio.TimerHandle] = None
        self._subscriptions: Dict[str, Dict[str, Any]] = {}
        self.direct = Direct(self)

    async def open(self) -> None:
        """Connect once. Raises Refused, OSError or ValueError."""
        await self._connect()

    def bye(self) -> None:
        """Say that this program ends: nothing that was answered will be asked again. From any thread."""
        peer = self._protocol
        if self._ready and peer is not None:
            self._write_raw(peer, websocket.encode(frames.encode({"t": "bye"}), key=self._key))

    async def close(self) -> None:
        """Close; whatever is unanswered fails."""
        self._flush_ended()
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        if self._protocol is not None and self._protocol.transport is not None:
            self._write_raw(self._protocol, websocket.encode(b"\x03\xe8", websocket.CLOSE))
            self._protocol.transport.close()
        self._fail(ConnectionError("the client is closed"))

    def request(
        self, method: str, args: Mapping[str, Any], payloads: Sequence[bytes] = ()
    ) -> "asyncio.Future[Tuple[Any, List[bytes]]]":
        """Ask at once; the future gives the answer and its payloads. It raises Refused."""
        return self._ask(_asking(method, args, payloads))

    def ask(
        self,
        asked: Asked,
        method: str,
        args: Mapping[str, Any],
        payloads: Sequence[bytes] = (),
        *,
        patience: Optional[float] = None,
    ) -> None:
        """Ask at once, from any thread. ``forget`` follows, also where Ctrl-C comes before this returns.

        Args:
            asked: gets the answer; whether it is ``alone`` is said before.
            method: the request's name.
            args: its arguments.
            payloads: what comes with it.
            patience: seconds after which it fails with NoAnswer.
        """
        if patience is not None:
            asked.until = monotonic() + patience
        peer = self._requests.begin(asked, _asking(method, args, payloads))
        self._write_raw(peer, websocket.encode(asked.frame, key=self._key))
        if not asked.alone:
            self.direct.look_soon()

    def forget(self, asked: Asked) -> None:
        """Wait for a request no more. From any thread."""
        self._requests.forget(asked)

    async def submit_durable(self, call: Call, inputs: List[Input], total: Optional[int] = None) -> None:
        """Send inputs of a spawned call; returns when the store has them.

        Args:
            call: the call.
            inputs: some of its inputs.
            total: how many inputs the call has in all, once that is known.
        """
        waits = []
        for batch in batches(inputs) if inputs else [inputs]:

            def frame(number: int, _: int, __: List[int], batch: List[Input] = batch) -> bytes:
                header = {"t": "in", "c": call.call_id, "f": call.function_id, "d": 1, "i": number}
                if total is not None:
                    header["n"] = total
                return inputs_frame(header, call, batch)

            waits.append(self._ask(frame))
        await asyncio.gather(*waits)

    def submit(self, call: Call, inputs: List[Input]) -> None:
        """Send inputs of a call that this client waits for; they are kept until answered.

        From any thread: waking the loop's thread to write a few bytes would cost more than all the
        rest of a short call. Registered first and sent after, an input that crosses a reconnect is
        sent twice, which the dispatcher knows by its id, and never not at all.
        """
        self._calls[call.call_id] = call
        if self.closed:
            self._calls.pop(call.call_id, None)
            call.on_failure(ConnectionError("the client is closed"))
            return
        pending = call.pending
        for index, payload, flags in inputs:
            pending[index] = (payload, flags)
        if self._ready:
            self._send_inputs(call, inputs)
        if not call.alone:
            self.direct.look_soon()

    @property
    def connected(self) -> bool:
        """Whether there is a socket now to a dispatcher that has welcomed us."""
        return self._ready

    def waiting(self) -> int:
        """Return how many calls and requests wait for something."""
        return len(self._calls) + len(self._requests)

    def end(self, call: Call) -> None:
        """Forget a call here and there; what still runs of it is cancelled there. From any thread."""
        if self._calls.pop(call.call_id, None) is None:
            return
        self._ended.append(call.call_id)
        if call.pending or len(self._ended) >= 64:
            self.loop.call_soon_threadsafe(self._flush_ended)

    def taken(self, call: Call, count: int) -> None:
        """Say how many items of a generator were taken, so that it goes on. From any thread."""
        if self._ready:
            self._write(frames.encode({"t": "more", "c": call.call_id, "x": 0, "n": count}))

    def subscribe(self, app_id: str, args: Mapping[str, Any]) -> None:
        """Remember a subscription so that a reconnect renews it."""
        self._subscriptions[app_id] = dict(args, backlog=False)

    def own(self, app_id: str) -> None:
        """Claim an ephemeral App at every reconnect: a restarted server cannot know whose it is."""
        self._hello.setdefault("apps", []).append(app_id)

    # --- below: the loop's side -------------------------------------------------------------------

    def _ask(self, frame: Callable[[int, int, List[int]], bytes]) -> "asyncio.Future[Any]":
        asked = LoopAsked(self.loop, self._thread)
        peer = self._requests.begin(asked, frame)
        asked.future.add_done_callback(lambda _: self._requests.forget(asked))
        self._write_raw(peer, websocket.encode(asked.frame, key=self._key))
        self.direct.look()
        return asked.future

    def _write(self, frame: bytes) -> None:
        self._write_raw(self._protocol, websocket.encode(frame, key=self._key))

    def _write_raw(self, peer: Optional[Socket], data: bytes) -> None:
        if peer is None:
            return
        with self._write_lock:
            if peer.torn:
                self.loop.call_soon_threadsafe(peer.transport.abort)
                return
            if threading.get_ident() == self._thread:
                if peer.queued:
                    # The end of a frame may be in there, whose beginning is written.
                    queued, peer.queued = peer.queued, []
                    data = b"".join((*queued, data))
                peer.transport.write(data)
                return
            # Stays so where a Ctrl-C meets what follows.
            peer.torn = True
            if peer.plain and not peer.full and not peer.queued:
                # The transport has nothing to write, and gets nothing while we hold the lock.
                try:
                    data = data[os.write(peer.descriptor, data) :]
                except BlockingIOError:
                    pass
                except OSError:
                    # The loop's thread sees the same end, and a reconnect sends all of it again.
                    return
                if not data:
                    peer.torn = False
                    return
            peer.queued.append(data)
            if len(peer.queued) == 1:
                self.loop.call_soon_threadsafe(self._write_queued, peer)
            peer.torn = False

    def _write_queued(self, peer: Socket) -> None:
        with self._write_lock:
            queued, peer.queued = peer.queued, []
            if not peer.transport.is_closing():
                peer.transport.write(b"".join(queued))

    def _send_inputs(self, call: Call, inputs: List[Input]) -> None:
        for batch in batches(inputs):
            self._write(waited_frame(call, batch))

    def _flush_ended(self) -> None:
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        if self._ended and self._ready:
            ended, self._ended = self._ended, []
            self._write(frames.encode({"t": "end", "c": ended}))

    async def _connect(self) -> None:
        url, token = await self._address()
        where = parse_address(url)
        self._key = where.mask_key
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request, accept = websocket.handshake(where.authority, "/v1/connect", headers)

        def protocol() -> Socket:
            return Socket(self, websocket.Decoder(accept), request)

        made: Any
        if where.path:
            made = await self.loop.create_unix_connection(protocol, where.path)
        elif where.tls:
            made = await self._connect_tls(protocol, where)
        else:
            made = await self.loop.create_connection(protocol, where.host, where.port)
        peer: Socket = made[1]
        try:
            await asyncio.wait_for(peer.upgraded, 15)
            self._protocol = peer
            self._welcomed = self.loop.create_future()
            # Requests up to this number may have reached the dispatcher before.
            self._write(frames.encode({**self._hello, "again": self._requests.last}))
            await asyncio.wait_for(self._welcomed, 15)
        except websocket.WebSocketError as error:
            peer.transport.abort()
            if error.status in (401, 403):
                raise Refused(
                    "AuthError",
                    f"{url} refused the token: store a valid one with `modal-nomad token set`, or set "
                    "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
                ) from error
            raise ConnectionError(f"{url}: {error}") from error
        except asyncio.TimeoutError as error:
            peer.transport.abort()
            raise ConnectionError(f"{url} does not answer like a dispatcher") from error
        except BaseException:
            peer.transport.abort()
            raise
        self._ready = True
        unanswered = self._requests.ready(peer)
        peer.heard = monotonic()
        self.loop.call_later(_SILENCE / 3, self._watch, peer)
        for app_id, args in self._subscriptions.items():
            self._write(
                frames.encode({"t": "rq", "i": 0, "m": "app.subscribe", "a": dict(args, app_id=app_id)})
            )
        for frame in unanswered:
            self._write(frame)
        for call in list(self._calls.values()):
            self._send_inputs(call, [(i, p, f) for i, (p, f) in call.pending.items()])
            if call.window is not None and call.pending:
                self.taken(call, call.window.taken)
        self._flush_ended()

    async def _connect_tls(self, protocol: Callable[[], Socket], where: Address) -> Any:
        import ssl

        from .tls import client_context

        context = client_context()
        try:
            return await self.loop.create_connection(protocol, where.host, where.port, ssl=context)
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                "ConnectionError",
                f"the certificate of https://{where.authority} is not trusted ({error.verify_message}): "
                "set MODAL_CA_BUNDLE to the PEM file of its authority",
            ) from error

    def _watch(self, peer: Socket) -> None:
        if peer is not self._protocol or not self._ready:
            return
        if monotonic() - peer.heard > _SILENCE:
            peer.transport.abort()
        else:
            self.loop.call_later(_SILENCE / 3, self._watch, peer)

    def _lost(self, peer: Socket) -> None:
        if peer is not self._protocol:
            return
        self._protocol = None
        self._requests.lost()
        self.direct.forget()
        was_ready, self._ready = self._ready, False
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(ConnectionError("the dispatcher closed the connection"))
            self._welcomed.exception()
        if was_ready and not self.closed:
            self._task = self.loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        deadline = self.loop.time() + self._retry_for
        delay = 0.02
        while not self.closed:
            try:
                await self._connect()
                return
            except (Refused, ValueError) as error:
                self.closed = True
                self._fail(error)
                return
            except OSError as error:
                if self.loop.time() + delay > deadline:
                    self.closed = True
                    self._fail(
                        ConnectionError(
                            f"no connection to the dispatcher for {self._retry_for:.0f} s: {error}"
                        )
                    )
                    return
            await asyncio.sleep(delay)
            delay = min(delay * 1.6, 0.5)

    def _fail(self, error: BaseException) -> None:
        self._requests.close(error)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.on_failure(error)

    def _received(self, data: bytes) -> None:
        header, payloads = frames.decode(data)
        if header["t"] == "out":
            self._outputs(header, payloads)
        elif header["t"] == "gen":
            self._items(header, payloads)
        elif header["t"] == "rs":
            self._answered(header, payloads)
        elif self._on_loop():
            self._told(header, payloads)
        else:
            self.loop.call_soon_threadsafe(self._told, header, payloads)

    def _answered(self, header: frames.Header, payloads: List[bytes]) -> None:
        asked = self._requests.find(header["i"])
        if asked is None:
            return
        if asked.alone and not self.direct.callers and self._on_loop():
            self._hand_over()
        if "e" in header:
            asked.fail(Refused(*header["e"]))
        else:
            asked.settle((header.get("v"), payloads))

    def _on_loop(self) -> bool:
        # A caller may have read bytes of a connection that was lost at that moment.
        return threading.get_ident() == self._thread

    def _hand_over(self) -> None:
        if self.direct.wished and self.waiting() == 1 and self._protocol is not None:
            self.direct.hand_over(self._protocol)

    def _told(self, header: frames.Header, payloads: List[bytes]) -> None:
        kind = header["t"]
        if kind == "welcome":
            self.welcome = header
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_result(None)
        elif kind == "refused":
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_exception(Refused(*header["e"]))
        elif self._on_event is not None:
            self._on_event(header, payloads)

    def _items(self, header: frames.Header, payloads: List[bytes]) -> None:
        call = self._calls.get(header["c"])
        if call is None or call.window is None or call.on_items is None:
            return
        flags = header.get("f") or [0] * len(payloads)
        if call.window.receive(header["q"], list(zip(payloads, flags))):  # noqa: B905 (not on 3.9)
            call.on_items()

    def _outputs(self, header: frames.Header, payloads: List[bytes]) -> None:
        call = self._calls.get(header["c"])
        if call is None:
            return
        indexes = header["x"]
        statuses, flags = header.get("s"), header.get("f")
        pending = call.pending
        outputs: List[Output] = []
        for position, index in enumerate(indexes):
            # An output that comes twice (a reconnect crossed it) is taken once.
            if pending.pop(index, None) is None:
                continue
            outputs.append(
                (
                    index,
                    statuses[position] if statuses else 0,
                    payloads[position],
                    flags[position] if flags else 0,
                )
            )
        call.acks.extend(indexes)
        if not self.direct.callers and self._on_loop():
            if not pending and self._flush_at is None:
                # Its owner will end it from another thread, without waking this one for it.
                self._flush_at = self.loop.call_later(0.05, self._flush_ended)
            self._hand_over()
        if outputs:
            call.on_outputs(outputs)


def _asking(
    method: str, args: Mapping[str, Any], payloads: Sequence[bytes]
) -> Callable[[int, int, List[int]], bytes]:
    def frame(number: int, unanswered: int, answered: List[int]) -> bytes:
        # Answers to earlier requests than the unanswered ones need not be kept for us.
        header = {"t": "rq", "i": number, "m": method, "a": args, "k": unanswered}
        if answered:
            later = [x for x in answered if x > unanswered]
            answered.clear()
            if later:
                header["r"] = later
        return frames.encode(header, payloads)

    return frame
