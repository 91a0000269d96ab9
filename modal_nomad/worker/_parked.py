"""Keeps an allocation while the memory snapshot in it waits: ``python -I -S _parked.py DESCRIPTOR``.

The descriptor is a socket to the snapshot's process; each ends with the other.
"""

import os
import signal
import sys


def main() -> int:
    """Wait until the snapshot ends, or until told to end by a signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(0))
    os.read(int(sys.argv[1]), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
