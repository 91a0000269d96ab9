"""This project, embedded: resident memory of dispatcher and client during one long ``map``."""

import asyncio
import json
import os
import sys
from pathlib import Path

import modal_nomad as modal
from benchmarks.measure import noop
from modal_nomad._bridge import library_loop

app = modal.App("benchmark-memory")
two = app.function(name="two", max_containers=2, serialized=True)(noop)


def resident(pid: int) -> float:
    """Give a process's resident memory in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def dispatcher_pid() -> int:
    """Ask the dispatcher for its process id."""
    request = modal.Client.from_env()._request("server.status", {})
    return int(asyncio.run_coroutine_threadsafe(request, library_loop()).result()["pid"])


def main(inputs: int) -> None:
    """Measure."""
    result = {"inputs": float(inputs)}
    with app.run():
        pid = dispatcher_pid()
        for done, _ in enumerate(two.map(range(inputs)), 1):
            if done in (inputs // 10, inputs):
                share = done * 100 // inputs
                result[f"dispatcher_{share}"] = resident(pid)
                result[f"client_{share}"] = resident(os.getpid())
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]))
