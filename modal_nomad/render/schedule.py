"""A Function's crontab line → a periodic job that has the dispatcher make the call, and waits for its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_nomad.wire.crontab import plain
from modal_nomad.wire.spec import ScheduleSpec

_TASK = "launch"
_CPU_MHZ = 20
_MEMORY_MIB = 64
_RUNTIME = "local/runtime"
_SUFFIX = "--schedule"
_ENVIRONMENT = ("MODAL_SERVER_URL", "MODAL_WORKER_TOKEN_FILE", "MODAL_RUNTIME_DIR", "MODAL_ENVIRONMENT")


def schedule_job_id(job_id: str) -> str:
    """Return the id of the periodic job that stands beside a Function's job."""
    return job_id + _SUFFIX


def schedule_job(job: Mapping[str, Any], spec: ScheduleSpec) -> dict[str, Any] | None:
    """Return the periodic job of a schedule, or None for a period, which no crontab line says.

    Args:
        job: the Function's own job.
        spec: its schedule.
    """
    if not spec.cron:
        return None
    name = schedule_job_id(str(job["ID"]))
    (group,) = job["TaskGroups"]
    (container,) = (task for task in group["Tasks"] if task.get("Identities"))
    *options, script = container["Config"]["args"]
    task = {
        "Name": _TASK,
        "Driver": container["Driver"],
        "Config": {**container["Config"], "args": [*options, script, "--launch"]},
        "Env": {key: container["Env"][key] for key in _ENVIRONMENT},
        "Artifacts": [a for a in container["Artifacts"] if a["RelativeDest"] == _RUNTIME],
        "Identities": container["Identities"],
        "Resources": {"CPU": _CPU_MHZ, "MemoryMB": _MEMORY_MIB},
        "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
    }
    return {
        **{key: job[key] for key in ("Namespace", "NodePool", "Datacenters", "Priority", "Meta")},
        "ID": name,
        "Name": name,
        "Type": "batch",
        "Periodic": {
            "Enabled": True,
            "Specs": [plain(spec.cron)],
            "SpecType": "cron",
            "TimeZone": spec.timezone,
            "ProhibitOverlap": spec.prohibit_overlap,
        },
        "TaskGroups": [
            {
                "Name": _TASK,
                "Count": 1,
                "Tasks": [task],
                "EphemeralDisk": {"SizeMB": 10},
                # It asks for the same call again, under the same id: no run is made twice.
                "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
            }
        ],
    }
