"""HCL of rendered jobs."""

from __future__ import annotations

from modal_nomad.cli._hcl import to_hcl

JOB = {
    "Job": {
        "ID": "hello-square",
        "Name": "hello-square",
        "Type": "batch",
        "Datacenters": ["dc1", "*"],
        "NodePool": "default",
        "ParameterizedJob": {"Payload": "forbidden", "MetaRequired": ["modal_container"]},
        "Meta": {"modal_app": "hello", "with.dot": "x"},
        "Constraints": [{"LTarget": "${attr.kernel.name}", "RTarget": "linux", "Operand": "="}],
        "TaskGroups": [
            {
                "Name": "main",
                "Count": 1,
                "RestartPolicy": {"Attempts": 0, "Mode": "fail", "Interval": 1_800_000_000_000},
                "EphemeralDisk": {"SizeMB": 300},
                "Networks": [{"DynamicPorts": [{"Label": "http", "To": 0, "Value": 0}]}],
                "Tasks": [
                    {
                        "Name": "worker",
                        "Driver": "raw_exec",
                        "Config": {"command": "python3", "args": ["-m", "x"]},
                        "Env": {"A": 'say "${hi}"\n', "T": "${NOMAD_META_modal_container}"},
                        "KillTimeout": 30_000_000_000,
                        "Identities": [{"Name": "modal", "Audience": ["modal-nomad"], "File": True}],
                        "Resources": {"CPU": 100, "MemoryMB": 256, "MemoryMaxMB": None},
                        "Artifacts": [{"GetterSource": "http://h/a.zip", "RelativeDest": "local/code"}],
                    }
                ],
            }
        ],
    }
}


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_blocks_labels_and_names() -> None:
    lines = squeezed(to_hcl(JOB))
    for line in (
        'job "hello-square" {',
        'datacenters = ["dc1", "*"]',
        'node_pool = "default"',
        "parameterized {",
        'meta_required = ["modal_container"]',
        "meta = {",
        '"with.dot" = "x"',
        'attribute = "${attr.kernel.name}"',
        'group "main" {',
        'interval = "30m"',
        "ephemeral_disk {",
        'port "http" {}',
        'task "worker" {',
        'kill_timeout = "30s"',
        "identity {",
        'aud = ["modal-nomad"]',
        "memory = 256",
        'destination = "local/code"',
    ):
        assert line in lines
    assert not any("memory_max" in line for line in lines)


def test_text_is_escaped_and_runtime_variables_are_kept() -> None:
    text = to_hcl(JOB)
    assert r'"say \"$${hi}\"\n"' in text
    assert '"${NOMAD_META_modal_container}"' in text


def test_braces_balance_and_bare_job_is_the_same() -> None:
    text = to_hcl(JOB)
    assert text == to_hcl(JOB["Job"])
    assert text.count("{") == text.count("}")
