"""What a fork of this process would not carry along, found before one is made."""

import ctypes
import os
import stat
import threading
import time
import warnings
from contextlib import suppress
from typing import Dict, List, Set

_OUR_THREADS = frozenset(("modal-reader", "modal-output"))
_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/", "/dev/dxg")
_CUDA_LIBRARY = "libcuda.so"
_CUDA_NOT_INITIALIZED = 3
_QUEUES = {"anon_inode:[eventpoll]": "an epoll queue", "anon_inode:[io_uring]": "an io_uring"}
# A joined thread may stand in /proc a moment longer.
_THREADS_END_WITHIN = 0.05


def descriptors() -> Set[int]:
    """Return the open descriptors of this process."""
    found = set()
    with suppress(OSError):
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            # One of them was the listing's own.
            with suppress(OSError):
                os.fstat(descriptor)
                found.add(descriptor)
    return found


def obstacles(ours: Set[int]) -> List[str]:
    """Say in words what a fork of this process would not carry along; nothing when it carries all.

    Args:
        ours: descriptors that are the worker's own.
    """
    return [*_threads(), *_open(ours), *_cuda(), *_children()]


def _threads() -> List[str]:
    if not _other_threads():
        return []
    # A library that knows of forks ends its threads before one (OpenBLAS does) and starts them again when
    # they are needed. Whose threads outlive a fork for trial, does not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    until = time.monotonic() + _THREADS_END_WITHIN
    while True:
        left = _other_threads()
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.002)


def _other_threads() -> List[str]:
    """Name the threads that are neither the main one nor the worker's, those of C libraries included."""
    known: Dict[int, threading.Thread] = {x.native_id: x for x in threading.enumerate() if x.native_id}
    main = threading.main_thread()
    ids = set(known)
    with suppress(OSError):
        ids |= {int(x) for x in os.listdir("/proc/self/task")}
    found = []
    for thread_id in sorted(ids - {os.getpid()}):
        thread = known.get(thread_id)
        if thread is None:
            with suppress(OSError), open(f"/proc/self/task/{thread_id}/comm") as file:
                found.append(f"thread {file.read().strip()!r} of a C library runs")
        elif thread is not main and thread.name not in _OUR_THREADS:
            found.append(f"thread {thread.name!r} runs")
    return list(dict.fromkeys(found))


def _open(ours: Set[int]) -> List[str]:
    found = []
    for descriptor in sorted(descriptors() - ours):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.append(f"a socket is open (descriptor {descriptor})")
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            if target.startswith(_GPU_DEVICES):
                found.append(f"the GPU is in use ({target})")
            elif target in _QUEUES:
                found.append(f"{_QUEUES[target]} is open (descriptor {descriptor})")
    return found


def _cuda() -> List[str]:
    """Ask CUDA's library, where one is loaded, whether it has been used: it bears no fork from then on."""
    paths = set()
    with suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if os.path.basename(path).startswith(_CUDA_LIBRARY):
                paths.add("/" + path)
    for path in sorted(paths):
        try:
            # Loaded already, so this only finds it.
            status = ctypes.CDLL(path).cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p()))
        except (OSError, AttributeError):
            status = 0
        if status != _CUDA_NOT_INITIALIZED:
            return [f"CUDA has been initialized ({path})"]
    return []


def _children() -> List[str]:
    """Name the processes that only this one can wait for."""
    pids: List[str] = []
    with suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            with suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
                pids += file.read().split()
    found = []
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/comm") as comm:
            found.append(f"process {comm.read().strip()!r} runs")
    return found
