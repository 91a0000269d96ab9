"""The Terraform modules: read as HCL, and held to the jobs that they submit. No ``terraform`` is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hcl2
import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "terraform/modules").iterdir())
EXAMPLES = sorted((ROOT / "terraform/examples").iterdir())
# What Terraform itself calls by another name in a module.
RENAMED = {"provider": "service_provider"}


def text_of(module: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(module.glob("*.tf")))


def read(file: Path) -> dict[str, Any]:
    with open(file) as opened:
        return dict(hcl2.load(opened))


def names(blocks: list[dict[str, Any]]) -> set[str]:
    return {name.strip('"') for block in blocks for name in block}


def defaults(file: Path) -> dict[str, Any]:
    """Return the defaults of a file's variables; None for what has none."""
    blocks = read(file)["variable"]
    return {name.strip('"'): body.get("default") for block in blocks for name, body in block.items()}


@pytest.mark.parametrize("module", MODULES + EXAMPLES, ids=lambda x: x.name)
def test_a_module_is_whole(module: Path) -> None:
    """It is HCL, has its three files, and each variable is declared, described and used."""
    main, variables = read(module / "main.tf"), read(module / "variables.tf")
    assert main["resource"] and read(module / "outputs.tf")["output"]
    declared = names(variables["variable"])
    assert declared == set(re.findall(r"\bvar\.(\w+)", text_of(module)))
    for block in variables["variable"]:
        for name, body in block.items():
            assert body["description"] and body["type"], name


@pytest.mark.parametrize("name", ["dispatcher", "gateway", "image-builder"])
def test_a_module_gives_its_job_every_variable(name: str) -> None:
    """What it submits is the jobspec beside it, with all of its variables and no others."""
    module = ROOT / "terraform/modules" / name
    assert f'file("${{path.module}}/../../../jobspecs/{name}.nomad.hcl")' in text_of(module)
    given = re.search(r"vars = \{(.*?)\n    \}", text_of(module), re.DOTALL)
    assert given is not None
    passed = set(re.findall(r"^\s+(\w+)\s+=", given.group(1), re.MULTILINE))
    job = (ROOT / f"jobspecs/{name}.nomad.hcl").read_text()
    assert passed == set(re.findall(r'^variable "(\w+)"', job, re.MULTILINE))
    ours, theirs = defaults(module / "variables.tf"), defaults(ROOT / f"jobspecs/{name}.nomad.hcl")
    assert {x: ours[RENAMED.get(x, x)] for x in theirs} == theirs
    for found in re.findall(r'file\("\$\{path\.module\}/([^"]+)"\)', text_of(module)):
        assert (module / found).resolve().exists(), found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda x: x.name)
def test_an_example_calls_modules_by_their_variables(example: Path) -> None:
    called = read(example / "main.tf")["module"]
    assert {name for block in called for name in block}
    for block in called:
        for body in block.values():
            source = (example / body["source"].strip('"')).resolve()
            known = defaults(source / "variables.tf")
            given = {x for x in body if x not in ("source", "depends_on") and not x.startswith("__")}
            assert given <= set(known), source
            assert {x for x, default in known.items() if default is None} <= given, source
