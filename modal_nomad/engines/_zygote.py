"""The warm interpreter: a program that has imported the worker and forks one container per command.

Run as ``python -I [-S] _zygote.py SOCKET_FD [RUNTIME_DIR]``. Standard library only, CPython 3.9 and up;
it imports nothing of this package but the worker of the runtime directory it is given, and without
one it is a plain launcher of commands.

Messages in both directions are ``u32 length | JSON``. In: ``spawn`` (its file descriptors for stdout
and stderr, or stdin, stdout and stderr, ride along) and ``kill``. Out: ``ready``, ``started``,
``exit``, ``failed`` and ``broken``.
"""

# It runs on CPython 3.9, and it imports no more than it needs.
# ruff: noqa: UP006, UP035, UP031, UP045, SIM105, B905

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from typing import Any, Dict, List, Optional, Tuple

PR_SET_PDEATHSIG = 1
WARM_MODULES = (
    "modal_nomad.worker._session",
    "modal_nomad.worker._runner",
    "modal_nomad.wire",
    "modal_nomad.wire.frames",
    "modal_nomad.wire.serialization",
    "modal_nomad.wire.transport",
    "modal_nomad.exception",
    "modal_nomad.worker._pool",
    "modal_nomad.worker._loop_pool",
    # What user code needs that says `import modal` and calls other Functions.
    "modal_nomad.app",
    "modal_nomad.image",
    "modal_nomad.wire.connection",
    "cloudpickle",
    "http.client",
)


def load_prctl() -> Any:
    """Return libc's prctl, or None where there is none."""
    try:
        import ctypes

        return ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None


def set_limits(memory: Optional[int], cpus: Optional[List[int]]) -> None:
    """Apply the memory limit in bytes and the CPU affinity, as far as this system lets us."""
    if memory:
        import resource

        # RLIMIT_DATA counts private writable memory since Linux 4.7; address space is no measure of use.
        kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            memory = min(memory, hard)
        try:
            resource.setrlimit(kind, (memory, memory))
        except (OSError, ValueError) as exc:
            print("memory limit not applied: %s" % exc, file=sys.stderr)
    if cpus and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as exc:
            print("cpu limit not applied: %s" % exc, file=sys.stderr)


def enter(groups: List[str]) -> None:
    """Have this process, and all that it starts, held to the limits of control groups."""
    for door in groups:
        try:
            with open(door, "w") as file:
                file.write("0")
        except OSError as exc:
            print("limit not applied: %s: %s" % (door, exc.strerror), file=sys.stderr)


class Zygote:
    """Forks containers on command, reaps them, says how they ended."""

    def __init__(self, sock: socket.socket, runtime: Optional[str]) -> None:
        self.sock = sock
        self.runtime = runtime
        self.pid = os.getpid()
        self.children: Dict[int, str] = {}
        self.ids: Dict[str, int] = {}
        self.buffer = b""
        self.fds: List[int] = []
        self.prctl = load_prctl()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)

    def send(self, message: Dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self.sock.sendall(struct.pack("!I", len(data)) + data)

    def die_with_parent(self, parent: int) -> None:
        if self.prctl is not None:
            self.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    def warm(self) -> None:
        """Import the worker, so that no container has to."""
        if self.runtime is None:
            return
        if "site" not in sys.modules or sys.flags.no_site:
            import site

            # -S hides the machine's packages; exit() and help() belong to the language all the same.
            site.setquit()
            site.setcopyright()
            site.sethelper()
        import faulthandler  # noqa: F401
        import importlib
        import random  # noqa: F401
        import resource  # noqa: F401

        # Our own package is the runtime's even where the image has one; all else is the image's first.
        sys.path.insert(0, self.runtime)
        importlib.import_module("modal_nomad")
        sys.path.append(sys.path.pop(0))
        importlib.import_module("modal_nomad.worker")
        for name in WARM_MODULES:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as exc:
                # A runtime of another version may lack one of ours; what ours needs must be there.
                if exc.name is None or not (name + ".").startswith(exc.name + "."):
                    raise

    def serve(self) -> None:
        """Obey until the other end closes; then end every container at once."""
        self.die_with_parent(os.getppid())
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.warm()
        except BaseException as exc:
            traceback.print_exc()
            self.send({"t": "broken", "error": "%s: %s" % (type(exc).__name__, exc)})
            return
        gc.collect()
        # Objects moved out of the collector's sight are not written to, so their pages stay shared.
        gc.freeze()
        self.send({"t": "ready"})
        try:
            while True:
                command = self.sock.fileno()
                readable = select.select([command, self.wake_read], [], [])[0]
                if self.wake_read in readable:
                    self.drain_wakeups()
                    self.reap()
                if command in readable and not self.receive():
                    return
        except (BrokenPipeError, ConnectionError):
            return
        finally:
            if os.getpid() == self.pid:
                for pid in self.children:
                    self.signal_group(pid, signal.SIGKILL)

    def drain_wakeups(self) -> None:
        try:
            while os.read(self.wake_read, 512):
                pass
        except BlockingIOError:
            pass

    def receive(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 16)
        self.fds.extend(fds)
        if not data:
            return False
        self.buffer += data
        while len(self.buffer) >= 4:
            size = struct.unpack_from("!I", self.buffer)[0]
            if len(self.buffer) < 4 + size:
                break
            message = json.loads(self.buffer[4 : 4 + size])
            self.buffer = self.buffer[4 + size :]
            if message["t"] == "spawn":
                self.spawn(message)
            else:
                self.kill(message)
        return True

    def kill(self, message: Dict[str, Any]) -> None:
        pid = self.ids.get(message["id"])
        if pid is None:
            return
        if message["group"]:
            self.signal_group(pid, message["signal"])
        else:
            os.kill(pid, message["signal"])

    @staticmethod
    def signal_group(pid: int, number: int) -> None:
        # A child that has not reached setsid yet has no group of its own: then only itself is hit.
        for send in (os.killpg, os.kill):
            try:
                send(pid, number)
                return
            except (ProcessLookupError, PermissionError):
                continue

    def spawn(self, message: Dict[str, Any]) -> None:
        count = message["fds"]
        fds, self.fds = self.fds[:count], self.fds[count:]
        try:
            pid = os.fork()
        except OSError as exc:
            self.send({"t": "failed", "id": message["id"], "error": "fork failed: %s" % exc.strerror})
            pid = -1
        if pid == 0:
            self.become(message, fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self.children[pid] = message["id"]
            self.ids[message["id"]] = pid
            self.send({"t": "started", "id": message["id"], "pid": pid})

    def reap(self) -> None:
        while self.children:
            try:
                if hasattr(os, "waitid"):
                    # The zombie keeps its number taken while the rest of its group is ended.
                    seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if seen is None:
                        return
                    if seen.si_pid in self.children:
                        self.signal_group(seen.si_pid, signal.SIGKILL)
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            container = self.children.pop(pid, None)
            if container is None:
                continue
            self.ids.pop(container, None)
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            self.send({"t": "exit", "id": container, "code": code, "signal": number})

    def become(self, message: Dict[str, Any], fds: List[int]) -> None:
        """Turn the forked child into the container; never returns."""
        code = 1
        try:
            os.setsid()
            self.die_with_parent(self.pid)
            streams = (0, 1, 2) if len(fds) == 3 else (1, 2)
            for fd, target in zip(fds, streams):
                os.dup2(fd, target)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # The object lets go of its number, or it would close a stranger's descriptor later.
            self.sock.detach()
            os.closerange(3, 1024)
            enter(message["groups"])
            os.chdir(message["cwd"])
            if message["argv"] is not None:
                self.execute(message)
            os.environ.clear()
            os.environ.update(message["env"])
            code = self.work(message)
        except MemoryError:
            self.out_of_memory()
        except BaseException:
            traceback.print_exc()
        finally:
            flush()
            os._exit(code)

    def execute(self, message: Dict[str, Any]) -> None:
        argv: List[str] = message["argv"]
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # The interpreter ignores these from its start; a command expects them as usual.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        set_limits(message["memory"], message["cpus"])
        try:
            os.execvpe(argv[0], argv, message["env"])
        except OSError as exc:
            print("%s: %s" % (argv[0], exc.strerror), file=sys.stderr, flush=True)
            os._exit(126 if isinstance(exc, PermissionError) else 127)

    def work(self, message: Dict[str, Any]) -> int:
        import faulthandler

        import modal_nomad.worker

        sys.argv = [message["program"]]
        extra = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        sys.path[:0] = message["path"] + extra
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        faulthandler.enable()
        set_limits(message["memory"], message["cpus"])
        try:
            result: Any = modal_nomad.worker.main()  # type: ignore[attr-defined,unused-ignore]
        except SystemExit as exc:
            result = exc.code
            if isinstance(result, str):
                print(result, file=sys.stderr)
                result = 1
        return 0 if result is None else int(result) & 0xFF

    @staticmethod
    def out_of_memory() -> None:
        """End as the kernel would end it, so that every engine reports the same."""
        try:
            traceback.print_exc()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


def parse(argv: List[str]) -> Tuple[int, Optional[str]]:
    return int(argv[1]), (argv[2] if len(argv) > 2 else None)


if __name__ == "__main__":
    descriptor, directory = parse(sys.argv)
    # The script's own folder is first on the path of a script without -I; it must not shadow anything.
    sys.path = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]
    channel = socket.socket(fileno=descriptor)
    # Inherited on purpose up to here; what a container executes must not have it.
    channel.set_inheritable(False)
    Zygote(channel, directory).serve()
