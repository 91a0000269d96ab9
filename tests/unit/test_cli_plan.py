"""A plan of Nomad's as lines on a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from modal_nomad.cli._plan import plan_lines

WARNINGS = """1 warning:

* Group "container" has warnings: 1 error occurred:
\t* Task "container" has warnings: 1 error occurred:
\t* 1 error occurred:
\t* Identity[modal] identities without an expiration are insecure
"""
EDITED: dict[str, Any] = {
    "job_id": "app-f",
    "changes": True,
    "warnings": WARNINGS,
    "failures": {"container": "1 node has too little memory"},
    "diff": {
        "Type": "Edited",
        "Fields": [
            {"Type": "None", "Name": "Region", "Old": "global", "New": "global"},
            {"Type": "Edited", "Name": "Priority", "Old": "50", "New": "60"},
            {"Type": "Deleted", "Name": "Meta[old]", "Old": "x", "New": ""},
        ],
        "TaskGroups": [
            {
                "Type": "Edited",
                "Name": "container",
                "Updates": {"create/destroy update": 1},
                "Tasks": [
                    {
                        "Type": "Edited",
                        "Name": "container",
                        "Annotations": ["forces create/destroy update"],
                        "Objects": [
                            {"Type": "None", "Name": "LogConfig"},
                            {
                                "Type": "Added",
                                "Name": "Resources",
                                "Fields": [{"Type": "Added", "Name": "MemoryMB", "Old": "", "New": "300"}],
                            },
                        ],
                    }
                ],
            }
        ],
    },
}
SHOWN = [
    "+/- job app-f",
    '+/-   Priority: "50" => "60"',
    '-     Meta[old]: "x"',
    "+/-   group container (1 create/destroy update)",
    "+/-     task container (forces create/destroy update)",
    "+         Resources {",
    '+           MemoryMB: "300"',
    "          }",
    "  warning: Identity[modal] identities without an expiration are insecure",
    "  group container cannot be placed now: 1 node has too little memory",
]


def test_only_what_changes_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert plan_lines(EDITED) == SHOWN


def test_no_changes() -> None:
    assert plan_lines({"job_id": "app-f", "changes": False}) == ["  job app-f: no changes"]


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = plan_lines(EDITED)
    assert lines[0].startswith("\x1b[33m") and lines[6].startswith("\x1b[32m")
    assert lines[2].startswith("\x1b[31m")
