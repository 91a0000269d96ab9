"""Running synchronous functions: one lane on the main thread, or a lane per slot in threads."""

import signal
import sys
import threading
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Callable, Deque, List, Optional, Tuple

from .._execution_context import current_work
from ..exception import FunctionTimeoutError, InputCancellation
from ..wire import frames
from ..wire.serialization import dumps, loads
from ..wire.spec import CLEANUP_SECONDS
from ._ending import INTERRUPT, put_off
from ._outbox import MAX_BYTES, MAX_OUTPUTS, Outbox, Values, Work, stopped

FLUSH_BEFORE = 0.002
FLUSH_DURING = 0.005
GIVE_BACK_AFTER = 0.02
STUCK_AFTER = 5.0

Pending = Tuple[Any, int, float, Any]
"""What was thrown into a lane: the lease it is meant for, the status it means, when, and where it was."""


def thrown(status: int, timeout: float) -> BaseException:
    """Return the exception that ends user code for a status."""
    if status == frames.TERMINATED:
        return InputCancellation("the input was cancelled")
    return FunctionTimeoutError(f"the input ran longer than its timeout of {timeout:g} s")


class Pool:
    """Lanes that share one queue of inputs.

    Args:
        function: the user's.
        queue: the inputs, filled by the reader thread.
        new_outbox: makes an outbox for a lane.
        slots: inputs at a time.
        timeout: seconds for one input.
        give_back: takes leases that are not to be run here.
        request_drain: tells the container to end.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        queue: "Deque[Work]",
        values: Values,
        new_outbox: Callable[[], Outbox],
        slots: int,
        timeout: float,
        give_back: Callable[[List[Any]], None],
        request_drain: Callable[[], None],
    ) -> None:
        self.function = function
        self.queue = queue
        self.values = values
        self.new_outbox = new_outbox
        self.slots = slots
        self.timeout = timeout
        self.give_back = give_back
        self.request_drain = request_drain
        self.idle: Deque[Lane] = deque()
        self.lanes: List[Lane] = []
        self.turn: Any = None
        self.stopping = False
        self.abandoned = False
        self.returned = False
        self._serving = False
        self._grow = threading.Lock()
        self._stopped: SimpleQueue[None] = SimpleQueue()

    def run(self) -> None:
        """Run inputs until ``stop``; on the main thread."""
        if self.slots == 1:
            lane = Lane(self, threading.get_ident(), True)
            signal.signal(INTERRUPT, lane.on_signal)
            self.lanes.append(lane)
            lane.run()
            return
        self._serving = True
        try:
            self.wake(len(self.queue))
            # In turns: a signal that the kernel hands to a slot's thread wakes nobody here.
            while not self.stopping:
                with suppress(Empty):
                    self._stopped.get(timeout=0.2)
            for lane in list(self.lanes):
                while lane.thread.is_alive():
                    lane.thread.join(0.2)
        except KeyboardInterrupt:
            self.abandoned = True
            running, self.returned = self.running(), True
            self.give_back(running)
        self._serving = False

    def interruptible(self) -> bool:
        """Tell whether a KeyboardInterrupt in the main thread meets user code, or a wait for it."""
        if self.slots == 1:
            return any(lane.lease is not None for lane in self.lanes)
        return self._serving

    def preempt(self) -> bool:
        """Interrupt what runs; what does not end by itself then is given back. In a signal handler.

        Returns:
            Whether the handler is to raise KeyboardInterrupt, because user code runs in its thread.
        """
        self.abandoned = True
        if self.slots == 1:
            return self.interruptible()
        for lane in list(self.lanes):
            if lane.lease is not None:
                throw(lane.ident, KeyboardInterrupt)
        return False

    def stop(self) -> None:
        """Let the lanes end when they have nothing to do. Safe in a signal handler."""
        self.stopping = True
        self._stopped.put(None)
        for lane in list(self.lanes):
            lane.token.put(None)
        if self.turn is not None:
            self.turn.interrupt()

    def wake(self, count: int) -> None:
        """Tell that ``count`` inputs were queued."""
        idle = self.idle
        while count > 0:
            try:
                idle.popleft().token.put(None)
            except IndexError:
                break
            count -= 1
        if self.slots == 1:
            return
        with self._grow:
            while count > 0 and len(self.lanes) < self.slots:
                lane = Lane(self, 0, False)
                self.lanes.append(lane)
                lane.thread = threading.Thread(target=lane.run, name="modal-slot", daemon=True)
                lane.thread.start()
                count -= 1

    def has_work(self) -> bool:
        """Tell whether an idle lane has to get up."""
        return bool(self.queue) or self.stopping

    def running(self) -> List[Any]:
        """Return the leases that are being run."""
        return [x for x in [lane.lease for lane in self.lanes] if x is not None]

    def busy(self) -> bool:
        """Whether user code runs."""
        return any(lane.lease is not None for lane in self.lanes)

    def unsent(self) -> List[Any]:
        """Return the leases whose outputs have not been sent."""
        return [x for lane in list(self.lanes) for x in lane.outbox.leases()]

    def flush(self) -> None:
        """Send all waiting outputs that nobody is sending."""
        for lane in list(self.lanes):
            lane.outbox.try_flush()

    def cancel(self, lease: Any) -> bool:
        """Throw a cancellation into the input that is being run; False when it is not."""
        return any(
            lane.interrupt(lease, frames.TERMINATED) for lane in list(self.lanes) if lane.lease == lease
        )

    def pending_status(self, lease: Any) -> int:
        """Return why an input was thrown at: TIMEOUT or TERMINATED."""
        for lane in self.lanes:
            if lane.pending is not None and lane.pending[0] == lease:
                return lane.pending[1]
        return frames.TIMEOUT

    def tick(self, now: float) -> Tuple[float, bool, Any]:
        """Enforce times.

        Returns:
            Seconds until the next thing is due, whether every slot has been busy for long, and the
            lease that did not end after it was thrown at (or None).
        """
        wait = 3600.0
        all_long = len(self.lanes) == self.slots
        stuck = None
        for lane in list(self.lanes):
            lease = lane.lease
            if lease is None:
                all_long = False
            else:
                elapsed = now - lane.started
                if elapsed < GIVE_BACK_AFTER:
                    all_long = False
                pending = lane.pending
                if pending is not None and pending[0] == lease:
                    # Where user code has moved since, it cleans up.
                    limit = STUCK_AFTER if position(lane.ident) == pending[3] else CLEANUP_SECONDS
                    wait = min(wait, max(STUCK_AFTER / 50, pending[2] + limit - now))
                    if now > pending[2] + limit:
                        stuck = lease
                elif elapsed >= self.timeout:
                    lane.interrupt(lease, frames.TIMEOUT)
                    wait = min(wait, FLUSH_DURING)
                else:
                    wait = min(wait, self.timeout - elapsed)
            if lane.outbox.items:
                if lease is not None and now - lane.started >= FLUSH_DURING:
                    lane.outbox.try_flush()
                wait = min(wait, FLUSH_DURING)
        if self.queue:
            wait = min(wait, FLUSH_DURING)
            if self.idle:
                self.wake(1)
        return wait, all_long, stuck


class Lane:
    """One input at a time: takes it from the queue, runs it, keeps its output until it is worth a frame."""

    thread: threading.Thread

    def __init__(self, pool: Pool, ident: int, main: bool) -> None:
        self.pool = pool
        self.ident = ident
        self.main = main
        self.token: SimpleQueue[None] = SimpleQueue()
        self.outbox = pool.new_outbox()
        self.lease: Any = None
        self.started = 0.0
        self.pending: Optional[Pending] = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run inputs until the pool stops."""
        self.ident = threading.get_ident()
        while True:
            try:
                self._run()
                return
            except (FunctionTimeoutError, InputCancellation):
                # Thrown at the very moment that the input ended, and so past its own handler.
                lease, self.lease = self.lease, None
                if lease is not None:
                    self._ended_by_throw(lease)
                self._forget_throw()
            except KeyboardInterrupt:
                self._interrupted()

    def _run(self) -> None:
        pool = self.pool
        queue = pool.queue
        take = queue.popleft
        outbox = self.outbox
        waiting = outbox.items
        keep = waiting.append
        values = pool.values
        function = pool.function
        set_current = current_work.set
        none = dumps(None)
        limit, blob = frames.INLINE_LIMIT, frames.FLAG_BLOB
        size = 0
        work: Any
        oldest = now = monotonic()
        while True:
            try:
                work = take()
            except IndexError:
                outbox.flush()
                size = 0
                set_current(None)
                work = None
                if not self._wait():
                    return
                now = monotonic()
                continue
            if not waiting:
                oldest = now
            elif size >= MAX_BYTES or len(waiting) >= MAX_OUTPUTS or now - oldest >= FLUSH_BEFORE:
                outbox.flush()
                size = 0
                oldest = now = monotonic()
            lease, _, _, flags, data, _ = work
            self.started = now
            self.lease = lease
            set_current(work)
            try:
                if flags & blob:
                    data = values.fetch(data)
                args, kwargs = loads(data)
                result = function(*args, **kwargs)
                data = none if result is None else dumps(result)
                self.lease = None
            except BaseException as error:
                self.lease = None
                if self.pending is None:
                    self._failed(lease, error)
                    data = b""
            else:
                if self.pending is None:
                    if len(data) <= limit:
                        keep((lease, 0, 0, data))
                        size += len(data)
                    else:
                        keep(values.output(lease, 0, data))
            if self.pending is not None:
                self._ended_by_throw(lease)
                self._forget_throw()
            # A large value must not live on until the next input comes.
            args = kwargs = result = data = b""
            after = monotonic()
            outbox.seconds += after - now
            now = after

    def _wait(self) -> bool:
        """Sleep until there is an input; False when the pool has stopped."""
        pool = self.pool
        turn = pool.turn
        if turn is not None and turn.read(pool.has_work):
            return bool(pool.queue) or not pool.stopping
        pool.idle.append(self)
        if turn is not None:
            turn.want(True)
        if pool.has_work():
            try:
                pool.idle.remove(self)
            except ValueError:
                self.token.get()
        else:
            self.token.get()
        if turn is not None:
            turn.want(False)
        return bool(pool.queue) or not pool.stopping

    def _failed(self, lease: Any, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.pool.request_drain()
            if self.pool.abandoned:
                self._return(lease)
                return
        self.outbox.items.append(self.pool.values.failure(lease, error))

    def _interrupted(self) -> None:
        lease, self.lease = self.lease, None
        self.pool.request_drain()
        if lease is not None:
            self._return(lease)

    def _return(self, lease: Any) -> None:
        if not self.pool.returned:
            self.pool.give_back([lease])

    def _ended_by_throw(self, lease: Any) -> None:
        pending = self.pending
        status = pending[1] if pending is not None else frames.TIMEOUT
        self.outbox.items.append(stopped(lease, status, self.pool.timeout))

    def interrupt(self, lease: Any, status: int) -> bool:
        """Throw an exception into this lane's user code, from the reader thread."""
        with self._lock:
            if self.pending is not None:
                return True
            # First the mark, then the look: the lane does these the other way round.
            self.pending = (lease, status, monotonic(), position(self.ident))
            if self.lease != lease:
                self.pending = None
                return False
            if self.main:
                signal.pthread_kill(self.ident, INTERRUPT)
            else:
                throw(self.ident, type(thrown(status, self.pool.timeout)))
            return True

    def on_signal(self, number: int, frame: Any) -> None:
        """Raise in the main thread what ``interrupt`` asked for, if it still concerns this input."""
        pending = self.pending
        if pending is not None and pending[0] == self.lease and not put_off(number, frame):
            raise thrown(pending[1], self.pool.timeout)

    def _forget_throw(self) -> None:
        try:
            with self._lock:
                self.pending = None
                if not self.main:
                    throw(self.ident, None)
        except (FunctionTimeoutError, InputCancellation):
            self.pending = None


def position(ident: int) -> Any:
    """Return where a thread is in its code."""
    frame = sys._current_frames().get(ident)
    return None if frame is None else (id(frame), frame.f_lasti)


def throw(ident: int, kind: Optional[type]) -> None:
    """Have a thread raise an exception of a class, or forget the one it was to raise (None)."""
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), ctypes.py_object(kind) if kind is not None else None
    )
