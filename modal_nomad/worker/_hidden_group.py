"""Looks at this process's own control group where none is mounted, as in a chroot of Nomad's.

A program of its own, ``python -I -S _hidden_group.py``: who enters namespaces does not come back. A process
that is nobody elsewhere is root in a user namespace, and may mount there what it is in. It prints how many
processes of the group the kernel has ended for memory, and the group's limit in bytes.
"""

import os
import sys
import tempfile


def main() -> None:
    """Mount either version of it and print what it says. Raises OSError."""
    from modal_nomad.wire.over_use import killed, memory_limit
    from modal_nomad.worker._mounts import (
        CLONE_NEWCGROUP,
        CLONE_NEWNS,
        CLONE_NEWUSER,
        MS_PRIVATE,
        MS_REC,
        mount,
        unmount,
        unshare,
    )

    unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    with tempfile.TemporaryDirectory() as place:
        for kind, data in (("cgroup2", ""), ("cgroup", "memory")):
            try:
                mount("none", place, kind, data=data)
            except OSError:
                continue
            limit = memory_limit(place)
            if limit:
                print(killed(place), limit)
            unmount(place)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    main()
