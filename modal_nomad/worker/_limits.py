"""The limits of ``cpu=(request, limit)`` and ``memory=(request, limit)``, where no driver sets them."""

import math
import os
import sys
from contextlib import suppress
from typing import Mapping

from ..wire.cgroups import limit_cpus
from ._cgroups import own_group

CPU = "MODAL_CPU_LIMIT"
MEMORY = "MODAL_MEMORY_LIMIT"


def apply(environ: Mapping[str, str]) -> None:
    """Hold this process, and all that it starts, to its limits; those that it has already stay."""
    memory = int(environ.get(MEMORY) or 0) << 20
    if memory:
        import resource

        # Private writable memory: address space is no measure of use.
        kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
        soft, hard = resource.getrlimit(kind)
        known = [x for x in (soft, hard) if x != resource.RLIM_INFINITY]
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (min([memory, *known]),) * 2)
    cpus = float(environ.get(CPU) or 0)
    group = own_group("cpu", environ) if cpus else ""
    if group:
        # Nomad gives the driver raw_exec a group for its share of a busy node, and no limit in it.
        with suppress(OSError):
            limit_cpus(group, cpus)
    cores = math.ceil(cpus)
    if cores and hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        if cores < len(allowed):
            import random

            # Not by this process's own generator, which its siblings may have in the same state.
            with suppress(OSError):
                os.sched_setaffinity(0, random.SystemRandom().sample(allowed, cores))


def explain(error: BaseException) -> None:
    """Say in a MemoryError what the limit was; Python says nothing."""
    if not isinstance(error, MemoryError) or error.args:
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit != resource.RLIM_INFINITY:
        error.args = (
            f"this container's limit is {limit >> 20:,} MiB: ask for more with memory=(request, limit)",
        )
