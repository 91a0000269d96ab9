"""A Nomad job from its API's JSON form to the HCL that people write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Where the two forms differ in more than case.
_NAMES = {
    "LTarget": "attribute",
    "RTarget": "value",
    "Operand": "operator",
    "GetterSource": "source",
    "GetterOptions": "options",
    "GetterMode": "mode",
    "GetterHeaders": "headers",
    "RelativeDest": "destination",
    "EmbeddedTmpl": "data",
    "SourcePath": "source",
    "DestPath": "destination",
    "Envvars": "env",
    "SizeMB": "size",
    "MemoryMB": "memory",
    "MemoryMaxMB": "memory_max",
    "MaxFileSizeMB": "max_file_size",
    "Audience": "aud",
    "PortLabel": "port",
    "ParameterizedJob": "parameterized",
    "RestartPolicy": "restart",
    "ReschedulePolicy": "reschedule",
    "LogConfig": "logs",
    "Specs": "crons",
    "SplayTime": "splay",
}
# Lists of objects: each becomes a block of this name.
_BLOCKS = {
    "Constraints": "constraint",
    "Affinities": "affinity",
    "Spreads": "spread",
    "Artifacts": "artifact",
    "Templates": "template",
    "Services": "service",
    "Checks": "check",
    "Identities": "identity",
    "Networks": "network",
    "VolumeMounts": "volume_mount",
}
# Lists (or maps) of objects whose block carries a label.
_LABELLED = {
    "TaskGroups": ("group", "Name"),
    "Tasks": ("task", "Name"),
    "Devices": ("device", "Name"),
    "DynamicPorts": ("port", "Label"),
    "ReservedPorts": ("port", "Label"),
    "SpreadTarget": ("target", "Value"),
}
# Maps of the user's own keys: written as they are.
_FREE_MAPS = {"Env", "Meta", "Config", "GetterOptions", "GetterHeaders", "Options", "Header", "CanaryMeta"}
_NANOSECONDS = {
    "KillTimeout", "Interval", "Delay", "MaxDelay", "ShutdownDelay", "Timeout", "TTL", "Splay",
    "StopAfterClientDisconnect", "MaxClientDisconnect", "HealthyDeadline", "MinHealthyTime",
    "ProgressDeadline", "Stagger", "Grace", "ErrGrace", "Wait", "LostAfter",
}  # fmt: skip
# What the servers fill in, or what the block's label already says.
_OMITTED = {"ID", "Status", "StatusDescription", "Version", "CreateIndex", "ModifyIndex", "JobModifyIndex",
            "SubmitTime", "Stable", "Stop", "Dispatched", "ParentID"}  # fmt: skip
# Nomad resolves these on the node, so HCL keeps them; any other ${…} in a value is text and is escaped.
_RUNTIME = re.compile(r"\$\{(?:NOMAD_\w+|(?:attr|meta|node|device)\.[\w.\-]+|env\[[^\]]*\])\}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


def to_hcl(job: Mapping[str, Any]) -> str:
    """Return the HCL text of one job, given the object of Nomad's JSON form (with or without ``Job``)."""
    body = job.get("Job", job)
    lines = [f"job {_string(str(body['ID']))} {{"]
    rest = {k: v for k, v in body.items() if not (k == "Name" and v == body["ID"])}
    lines += _body(rest, 1)
    lines.append("}")
    return "\n".join(lines) + "\n"


def _body(data: Mapping[str, Any], depth: int, omit: Sequence[str] = ()) -> list[str]:
    pad = "  " * depth
    attributes: list[tuple[str, str]] = []
    blocks: list[list[str]] = []
    for key, value in data.items():
        if value is None or key in _OMITTED or key in omit or value in ([], {}):
            continue
        if key in _LABELLED:
            kind, label = _LABELLED[key]
            for item in value:
                inner = _port(item, key == "ReservedPorts") if kind == "port" else item
                blocks.append(_block(f"{kind} {_string(item[label])}", inner, depth, (label,)))
        elif key == "Volumes" and isinstance(value, Mapping):
            blocks += [_block(f"volume {_string(n)}", v, depth, ("Name",)) for n, v in value.items()]
        elif key in _BLOCKS:
            blocks += [_block(_BLOCKS[key], item, depth) for item in value]
        elif key in _FREE_MAPS:
            blocks.append(_free_map(_name(key), value, depth))
        elif isinstance(value, Mapping):
            blocks.append(_block(_name(key), value, depth))
        else:
            attributes.append((_name(key), _scalar(key, value, depth)))
    width = max((len(name) for name, _ in attributes), default=0)
    lines = [f"{pad}{name.ljust(width)} = {text}" for name, text in attributes]
    for block in blocks:
        if lines:
            lines.append("")
        lines += block
    return lines


def _block(head: str, data: Mapping[str, Any], depth: int, omit: Sequence[str] = ()) -> list[str]:
    pad = "  " * depth
    inner = _body(data, depth + 1, omit)
    return [f"{pad}{head} {{", *inner, f"{pad}}}"] if inner else [f"{pad}{head} {{}}"]


def _port(port: Mapping[str, Any], is_static: bool) -> dict[str, Any]:
    """A port without the zeros that mean "not set"; a reserved one's number is called static."""
    renamed = {"static" if k == "Value" else k: v for k, v in port.items() if is_static or k != "Value"}
    return {k: v for k, v in renamed.items() if v != 0}


def _free_map(name: str, data: Mapping[str, Any], depth: int) -> list[str]:
    pad = "  " * depth
    # A block can hold identifiers only; other keys (dots, slashes) need the map attribute form.
    equals = "" if all(_IDENTIFIER.match(k) for k in data) else "= "
    width = max(len(_key(k)) for k in data)
    inner = [f"{pad}  {_key(k).ljust(width)} = {_value(v, depth + 1)}" for k, v in data.items()]
    return [f"{pad}{name} {equals}{{", *inner, f"{pad}}}"]


def _scalar(key: str, value: Any, depth: int) -> str:
    if key in _NANOSECONDS and isinstance(value, int) and not isinstance(value, bool):
        return _string(_duration(value))
    return _value(value, depth)


def _value(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        pad = "  " * depth
        inner = "".join(f"{pad}  {_key(k)} = {_value(v, depth + 1)}\n" for k, v in value.items())
        return f"{{\n{inner}{pad}}}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v, depth) for v in value) + "]"
    return json.dumps(value)


def _key(name: str) -> str:
    return name if _IDENTIFIER.match(name) else _string(name)


def _name(key: str) -> str:
    if key in _NAMES:
        return _NAMES[key]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key).lower()


def _string(text: str) -> str:
    kept: list[str] = []
    position = 0
    for match in _RUNTIME.finditer(text):
        kept += [_escape(text[position : match.start()]), match.group()]
        position = match.end()
    kept.append(_escape(text[position:]))
    return '"' + "".join(kept) + '"'


def _escape(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)[1:-1]
    return quoted.replace("${", "$${").replace("%{", "%%{")


def _duration(nanoseconds: int) -> str:
    for unit, size in (
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
    ):
        if nanoseconds and nanoseconds % size == 0:
            return f"{nanoseconds // size}{unit}"
    return f"{nanoseconds}ns" if nanoseconds else "0s"
