"""Whether the kernel gives this process a network namespace, which ``block_network`` needs."""

from __future__ import annotations

import os


def netless() -> bool:
    """Say that it does not."""
    pid = os.fork()
    if pid == 0:
        try:
            from modal_nomad.worker._network import enter_empty

            enter_empty()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] != 0
