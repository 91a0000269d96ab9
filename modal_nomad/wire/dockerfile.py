"""Reading Dockerfiles: which instructions there are, and what they copy from the build context."""

import json
import re
from typing import Iterable, List, NamedTuple, Tuple

_HEREDOC = re.compile(r"""<<-?\s*(["']?)(\w+)\1""")
_ESCAPE = re.compile(r"#\s*escape\s*=\s*(\S)", re.IGNORECASE)


class Instruction(NamedTuple):
    """One instruction: its word in capitals, what follows it in one line, and its text as it stood."""

    word: str
    rest: str
    text: str

    @property
    def flags(self) -> Tuple[str, ...]:
        """The leading ``--flag=value`` words."""
        return tuple(_flags(self.rest)[0])

    @property
    def value(self) -> str:
        """What follows the flags."""
        return _flags(self.rest)[1]


def instructions(lines: Iterable[str]) -> List[Instruction]:
    """Return the instructions of a Dockerfile; continued lines are one, comments are none."""
    found: List[Instruction] = []
    texts: List[str] = []
    joined: List[str] = []
    escape = "\\"
    waiting: List[str] = []
    for line in "\n".join(lines).split("\n"):
        stripped = line.strip()
        if waiting:
            texts.append(line)
            if stripped == waiting[0]:
                waiting.pop(0)
                if not waiting:
                    found.append(_instruction(joined, texts))
                    texts, joined = [], []
            continue
        if stripped.startswith("#") or not stripped:
            directive = _ESCAPE.fullmatch(stripped)
            if directive and not found:
                escape = directive.group(1)
            continue
        texts.append(line)
        if stripped.endswith(escape):
            joined.append(stripped[:-1].rstrip())
            continue
        joined.append(stripped)
        if joined[0].split(None, 1)[0].upper() in ("RUN", "COPY", "ADD"):
            waiting = [match[1] for match in _HEREDOC.findall(" ".join(joined))]
        if not waiting:
            found.append(_instruction(joined, texts))
            texts, joined = [], []
    if joined:
        found.append(_instruction(joined, texts))
    return found


def _instruction(joined: List[str], texts: List[str]) -> Instruction:
    word, _, rest = " ".join(part for part in joined if part).partition(" ")
    return Instruction(word.upper(), rest.strip(), "\n".join(texts))


def _flags(rest: str) -> Tuple[List[str], str]:
    flags: List[str] = []
    while rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        flags.append(flag)
        rest = rest.lstrip()
    return flags, rest


def copied(found: Iterable[Instruction]) -> List[str]:
    """Return what ``COPY`` and ``ADD`` take from the build context, as they name it."""
    sources: List[str] = []
    for instruction in found:
        if instruction.word not in ("COPY", "ADD") or any(f.startswith("--from") for f in instruction.flags):
            continue
        for source in words(instruction.value)[:-1]:
            if not source.startswith("<<") and "://" not in source and not source.startswith("git@"):
                sources.append(source)
    return sources


def words(value: str) -> List[str]:
    """Return the words of an instruction in either form, ``a b`` or ``["a", "b"]``."""
    if value.startswith("["):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        if isinstance(parsed, list) and all(isinstance(x, str) for x in parsed):
            return parsed
    return value.split()
