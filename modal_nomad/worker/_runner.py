"""A container's life: connect, import, run inputs, drain. The reader thread lives here."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Set

from ..exception import FunctionTimeoutError
from ..wire import frames
from ..wire.spec import FunctionSpec
from ._backlog import Backlog
from ._capture import Capture, leave_signals_to_main
from ._ending import INTERRUPT, Ending
from ._loader import load_function, place_files, prepare
from ._obstacles import descriptors
from ._outbox import Outbox, Values, pack, stopped
from ._over_use import OverUse
from ._pools import pool_kind, web_pool
from ._session import FIRST_HEARTBEAT, HEARTBEAT, Gone, Refused, Session, Settings
from ._snapshot import IDLE_SECONDS, keep, park, waits
from ._turn import Turn

EXIT_FAILED = 1
EXIT_STUCK = 124


class Held(NamedTuple):
    """What a memory snapshot holds: a function or a Service; whose, and whether its files are in place."""

    found: Any
    function_id: str
    version: str
    params: Optional[bytes]
    placed: bool = True

    def fits(self, spec: FunctionSpec, welcome: Dict[str, Any]) -> bool:
        """Tell whether a container that is welcomed so may be a fork of it."""
        theirs = (welcome["function_id"], spec.version_key, welcome["params"])
        return theirs == (self.function_id, self.version, self.params)


class Runner:
    """One container. ``run`` is called once, on the main thread, and returns the exit code.

    Args:
        settings: what the engine says.
        version: of this package.
        held: what the memory snapshot holds, where this was forked from one.

    Attributes:
        parks: its allocation goes on, for the memory snapshot in it.
    """

    def __init__(self, settings: Settings, version: str, held: Optional[Held] = None) -> None:
        self.parks = False
        self._settings = settings
        self._version = version
        self._snapshot = held
        self._link: Optional[socket.socket] = None
        self._session = Session(settings, version)
        self._values = Values(
            lambda name: settings.blobs().get(name),
            lambda data: settings.blobs().put(data),
            lambda names: settings.blobs().get_all(names),
        )
        self._streams: Any = None
        self._backlog = Backlog(self._session, self._sync)
        self._pool: Any = None
        self._capture: Optional[Capture] = None
        self._closing = False
        self._born = time.monotonic()
        self._ending = Ending(settings.grace)
        self._spec: Optional[FunctionSpec] = None
        self._service: Any = None
        self._volumes: Any = None
        self._buckets: Any = None
        self._over_use: Optional[OverUse] = None
        self._turn = Turn(self._session, self._handle, self._wake_lane)

    def run(self) -> int:
        """Live the container's life."""
        try:
            welcome = self._session.connect()
        except (Refused, Gone) as error:
            sys.stderr.write(f"modal-nomad worker: {error}\n")
            return EXIT_FAILED
        self._spec = spec = FunctionSpec.from_dict(welcome["spec"])
        held = self._snapshot
        if held is not None and not held.fits(spec, welcome):
            sys.stderr.write("modal-nomad worker: the memory snapshot is of another Function or version\n")
            self._session.close()
            return EXIT_FAILED
        # By which the SDK finds the other Functions of this App, whichever engine started us.
        os.environ["MODAL_APP_ID"] = str(welcome.get("app_id", ""))
        try:
            kept = [volume for volume in spec.volumes if not volume.backend]
            if kept:
                from ._volumes import Volumes

                self._volumes = Volumes(kept, self._settings)
            if spec.buckets:
                from ._buckets import Buckets

                self._buckets = Buckets(spec.buckets, os.environ)
            if held is None or not held.placed:
                place_files(spec, self._values.fetch_all, *self._shown(spec), buckets=self._buckets)
        except Exception as error:
            if self._buckets is not None:
                self._buckets.close()
            self._init_failed(error)
            self._session.close()
            return EXIT_FAILED
        self._capture = Capture(self._session.send_log)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(INTERRUPT, lambda number, frame: None)
        self._session.wake_on_signals()
        reader = threading.Thread(target=self._read, name="modal-reader", daemon=True)
        reader.start()
        code = 0
        try:
            function = self._load(spec, welcome)
            if function is None:
                code = EXIT_FAILED
            else:
                code = self._serve(spec, function, welcome)
        except KeyboardInterrupt:
            self._backlog.draining = True
            if self._pool is not None:
                self._backlog.give_back_begun(self._pool.running())
        return self._finish(code)

    def _load(self, spec: FunctionSpec, welcome: Dict[str, Any]) -> Optional[Callable[..., Any]]:
        settings = self._settings
        try:
            prepare(spec, settings.code_dir, settings.runtime_dir)
            if self._volumes is not None:
                self._volumes.fill()
            found: Any = self._snapshot.found if self._snapshot is not None else None
            if found is None:
                ours = descriptors() if self._keeps(spec) else set()
                found = load_function(spec, settings.code_dir, self._values.fetch_name)
                if spec.is_class:
                    from ._service import Service

                    found = Service(found, spec, welcome["function_id"], welcome["params"])
                    found.begin()
                if self._keeps(spec):
                    self._keep(found, welcome, ours)
            if spec.is_class:
                found.enter()
                self._service = found
            loaded: Callable[..., Any] = found
            return loaded
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._init_failed(error)
            return None

    def _shown(self, spec: FunctionSpec) -> List[Any]:
        """Return what has directories to show: Volumes first, since a NetworkFileSystem may stand in one."""
        shown = [self._volumes] if self._volumes is not None else []
        host_volumes = os.environ.pop("MODAL_HOST_VOLUMES", "")
        if host_volumes and any(volume.backend for volume in spec.volumes):
            from ._host_volumes import HostVolumes

            shown.append(HostVolumes(spec.volumes, host_volumes))
        folder = os.environ.get("MODAL_NFS_DIR", "")
        if spec.network_file_systems and not folder and os.environ.get("MODAL_CONTAINER_RUNTIME"):
            from ._own_files import check_mounted

            check_mounted(spec)
        elif spec.network_file_systems:
            from ._nfs import NetworkFileSystems

            shown.append(NetworkFileSystems(spec.network_file_systems, folder))
        return shown

    def _keeps(self, spec: FunctionSpec) -> bool:
        # The view of the file system comes with a snapshot, and what is mounted is one container's own.
        shows = bool(spec.volumes or spec.buckets)
        return spec.enable_memory_snapshot and not shows and bool(self._settings.snapshot)

    def _keep(self, found: Any, welcome: Dict[str, Any], ours: Set[int]) -> None:
        """Leave what has been loaded to the containers that start later."""
        from ._service import Service

        if isinstance(found, Service):
            found.lifecycle.settle()
        self._sync()
        version = self._spec.version_key if self._spec is not None else ""
        held = Held(found, welcome["function_id"], version, welcome["params"])

        def run(moved: bool) -> int:
            if os.environ.get("MODAL_SECRETS_FILE"):
                from ._secrets import take_own

                take_own()
            later = held._replace(placed=not moved)
            return Runner(Settings(os.environ), self._version, held=later).run()

        seconds = self._settings.snapshot_seconds
        self._link = keep(
            self._settings.snapshot,
            ours,
            self._session.let_go,
            run,
            idle=seconds or IDLE_SECONDS,
            within=seconds > 0,
        )

    def _init_failed(self, error: BaseException) -> None:
        import traceback

        # The same words in the container's log, where an operator looks first.
        traceback.print_exception(type(error), error, error.__traceback__)
        self._sync()
        self._session.send({"t": "init_failed"}, [pack(error)])

    def _serve(self, spec: FunctionSpec, function: Callable[..., Any], welcome: Mapping[str, Any]) -> int:
        service = self._service
        if spec.served:
            kind, function, options = web_pool(spec, function, service, welcome, self._session.web_load)
        else:
            kind, options = pool_kind(spec, service)
        if spec.is_generator or any(method.is_generator for method in spec.methods.values()):
            from ._generators import Streams

            self._streams = Streams(self._session, self._values)
            if self._service is not None:
                self._service.stream(self._streams)
            else:
                function = self._streams.wrap(function, spec.name, spec.is_async)
        pool = kind(
            function,
            self._backlog.queue,
            self._values,
            lambda: Outbox(self._session, self._sync),
            spec.slots,
            spec.timeout,
            self._backlog.give_back_begun,
            self.request_drain,
            **options,
        )
        if spec.served:
            try:
                self._session.web = pool.open()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._init_failed(error)
                return EXIT_FAILED
        # Only now: until here the container starts, and is held to its startup_timeout.
        self._pool = pool
        if not options and not spec.is_async and pool.slots == 1:
            pool.turn = self._turn
        if self._backlog.draining:
            pool.stop()
        if self._service is not None and spec.slots == 1:
            self._service.name_output(self._name_output)
        elif len(spec.methods) == 1:
            # Of several at a time, only the name that all share is known.
            self._name_output(next(iter(spec.methods)))
        self._over_use = OverUse(os.environ, self._end_over_used)
        self._values.before_failure = self._over_use.look
        self._session.ready(spec.slots)
        pool.run()
        return EXIT_FAILED if spec.served and pool.failed else 0

    def _name_output(self, method: str) -> None:
        """Send what was printed under the name so far; what follows is that method's."""
        self._sync()
        self._session.method = method

    def _finish(self, code: int) -> int:
        self._backlog.draining = True
        self._turn.end()
        self._backlog.give_back_queued()
        session = self._session
        # The last outputs may wait for a reconnect; the reader ends the process when there is none.
        while session.unsent_leases():
            time.sleep(0.02)
        import atexit

        self._ending.hooks = True
        try:
            if self._service is not None:
                self._name_output("")
                self._service.lifecycle.exit()
            atexit._run_exitfuncs()
        except BaseException as error:
            sys.stderr.write(f"modal-nomad worker: an exit handler failed: {error!r}\n")
        if self._volumes is not None:
            # Told twice to end: a commit is all there or not at all.
            with suppress(KeyboardInterrupt):
                self._volumes.close()
        if self._buckets is not None:
            # Told to end, the container has its grace period for this, whatever is said here.
            with suppress(KeyboardInterrupt):
                self._buckets.close(self._settings.grace)
        self._ending.hooks = False
        if self._capture is not None:
            self._capture.close()
        self._closing = True
        if code == 0:
            self.parks = self._link is not None and not self._ending.told and waits(self._link)
            session.send({"t": "bye", "k": 1} if self.parks else {"t": "bye"})
        session.close()
        return code

    def park(self) -> None:
        """Leave this process to whom keeps the allocation for its memory snapshot. Does not return."""
        for thread in threading.enumerate():
            # As at the end of any program.
            if not thread.daemon and thread is not threading.main_thread():
                thread.join()
        if self._link is not None:
            park(self._link)

    def _sync(self) -> None:
        if self._capture is not None:
            self._capture.sync()

    # -- drain ---------------------------------------------------------------------------------

    def request_drain(self) -> None:
        """End when what is being run has ended. Safe in a signal handler."""
        self._backlog.draining = True
        if self._pool is not None:
            self._pool.stop()

    def _on_signal(self, number: int, frame: Any) -> None:
        ending = self._ending
        if not ending.note(number, frame):
            return
        pool = self._pool
        if pool is None:
            raise KeyboardInterrupt
        self.request_drain()
        if ending.signals == 1:
            if number == signal.SIGINT and pool.preempt():
                raise KeyboardInterrupt
        elif pool.interruptible() or ending.hooks:
            pool.abandoned = True
            raise KeyboardInterrupt

    def _follow_leases(self) -> None:
        """End when Nomad has read a leased Secret anew: what is in the environment cannot be changed."""
        settings = self._settings
        if not settings.secrets_file or self._backlog.draining:
            return
        from ._secrets import replaced

        if replaced(settings.secrets_file, settings.secret_leases):
            self._backlog.say_drain()
            self.request_drain()

    # -- the reader thread ---------------------------------------------------------------------

    def _read(self) -> None:
        leave_signals_to_main()
        try:
            self._read_until_closed()
        except Refused as error:
            self._die(EXIT_FAILED, f"refused: {error}")
        except Gone as error:
            self._die(EXIT_FAILED, str(error))
        except BaseException:
            import traceback

            self._die(EXIT_FAILED, f"the worker itself failed:\n{traceback.format_exc()}")

    def _read_until_closed(self) -> None:
        session = self._session
        turn = self._turn
        # Soon at first: the autoscaler waits for word of inputs that run long.
        beat_at = time.monotonic() + FIRST_HEARTBEAT
        while not self._closing:
            now = time.monotonic()
            if now >= beat_at:
                session.send({"t": "hb", "u": session.cpu.beat()})
                beat_at = now + HEARTBEAT
                self._follow_leases()
                if self._over_use is not None:
                    self._over_use.look()
            turn.pass_on()
            if turn.lanes:
                turn.park(beat_at)
                continue
            wait = min(beat_at - now, self._tick(now))
            if self._streams is not None:
                wait = min(wait, self._streams.tick(now))
            try:
                data = turn.receive(wait)
                if data is not None:
                    self._handle(*frames.decode(data))
            except (OSError, frames.FrameError):
                if self._closing:
                    return
                # Queued inputs are not in the next hello, so the dispatcher gives them to others.
                self._backlog.take()
                if self._streams is not None:
                    self._streams.stop()
                welcome = session.connect(self._held)
                if self._pool is not None and "web_key" in welcome:
                    # Of another dispatcher, perhaps, which took over.
                    self._pool.key = str(welcome["web_key"]).encode()

    def _wake_lane(self) -> None:
        if self._pool is not None:
            self._pool.wake(1)

    def _held(self) -> List[Any]:
        pool = self._pool
        if pool is None:
            return self._session.unsent_leases()
        # In the order in which a lease moves on, so none slips through between the looks.
        held = pool.running() + pool.unsent() + self._session.unsent_leases()
        return list(dict.fromkeys(held))

    def _tick(self, now: float) -> float:
        pool = self._pool
        if pool is None:
            return self._check_start(now)
        wait: float
        wait, all_long, stuck = pool.tick(now)
        if stuck is not None:
            self._end_stuck(stuck)
        for number in self._session.signals():
            if number in (signal.SIGTERM, signal.SIGINT):
                self._ending.begin(number)
                # The kernel may have given it to a thread that runs no handlers: the main one must get up.
                signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
        if self._ending.told:
            wait = min(wait, self._check_end(now))
        if self._backlog.queue and (all_long or self._backlog.draining):
            self._backlog.give_back_queued()
        return min(wait, self._backlog.cancel_again(now, pool))

    def _check_start(self, now: float) -> float:
        """End a container that is not ready in time, whatever its main thread does; gives the time left."""
        limit = self._spec.startup_timeout if self._spec is not None else None
        # Where only a timeout is set, which is about inputs, the dispatcher is more patient.
        if limit is None or self._backlog.draining:
            return HEARTBEAT
        left = self._born + limit - now
        if left > 0:
            return min(left, HEARTBEAT)
        text = f"the container was not ready within its startup_timeout of {limit:g} s: raise startup_timeout"
        self._session.send({"t": "init_failed"}, [pack(FunctionTimeoutError(text))])
        self._die(EXIT_FAILED, text)
        return 0.0

    def _check_end(self, now: float) -> float:
        """Hold a container that was told to end to its grace period; gives the time left."""
        self._backlog.say_drain()
        ending = self._ending
        if now >= ending.last:
            self._pool.flush()
            self._backlog.give_back_begun(self._pool.running())
            self._backlog.give_back_queued()
            self._die(EXIT_STUCK, "user code did not end within the grace period; its inputs run elsewhere")
        if now >= ending.interrupt_at and self._pool.busy():
            ending.interrupt()
        return max(0.01, min(ending.interrupt_at, ending.last) - now)

    def _handle(self, header: Dict[str, Any], payloads: List[bytes]) -> None:
        kind = header["t"]
        if kind == "run":
            backlog = self._backlog
            if backlog.draining or self._pool is None:
                backlog.give_back(header["x"])
            else:
                self._pool.wake(backlog.add(header, payloads))
        elif kind == "more" and self._streams is not None:
            self._streams.more(header["x"], header["n"])
        elif kind == "cancel":
            self._backlog.cancel(header["x"], self._pool)
        elif kind == "drain":
            self._backlog.draining = True
            self._backlog.give_back_queued()
            linger = getattr(self._pool, "linger", None)
            if linger is not None and header.get("w"):
                linger(header["w"], self.request_drain)
            else:
                self.request_drain()

    def _end_stuck(self, lease: Any) -> None:
        pool = self._pool
        timeout = self._spec.timeout if self._spec is not None else 0.0
        outbox = Outbox(self._session, lambda: None)
        outbox.items.append(stopped(lease, pool.pending_status(lease), timeout))
        pool.flush()
        outbox.flush(sync_logs=False)
        self._backlog.give_back_begun([x for x in pool.running() if x != lease])
        self._backlog.give_back_queued()
        self._die(EXIT_STUCK, "user code did not end after its timeout or cancellation; the container ends")

    def _end_over_used(self, kind: str, text: str) -> None:
        """End at once, as if the kernel had ended all of this container, and say what of."""
        self._pool.flush()
        self._session.send({"t": "over", "k": kind, "r": text})
        self._die(EXIT_FAILED, text)

    def _die(self, code: int, text: str) -> None:
        if self._volumes is not None and code == EXIT_STUCK:
            self._backlog.say_drain()
            self._volumes.close_soon(self._ending.told)
        capture = self._capture
        line = f"modal-nomad worker: {text}\n".encode("utf-8", "replace")
        if capture is not None:
            capture.drain()
            os.write(capture.original_stderr, line)
            self._session.send_log(2, line)
        self._session.close()
        os._exit(code)
