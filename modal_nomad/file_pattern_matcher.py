"""Which files to leave out: patterns in the language of ``.dockerignore`` files."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath

_SPECIAL = re.compile(r"[*?\[\]\\]")


class PatternMatcher:
    """Base of matchers: call one with a path, invert it with ``~``."""

    def __call__(self, path: PurePath) -> bool:
        """Say whether a path, relative to the directory being added, matches."""
        raise TypeError(f"{type(self).__name__} cannot match; use modal.FilePatternMatcher")

    def can_prune_directories(self) -> bool:
        """Say whether nothing below a directory that matches can be left, so that none need look there.

        Example:
            >>> FilePatternMatcher("node_modules").can_prune_directories()
            True
            >>> FilePatternMatcher("data", "!data/keep.txt").can_prune_directories()
            False
        """
        return False

    def __invert__(self) -> PatternMatcher:
        return _Inverted(self)


class _Inverted(PatternMatcher):
    def __init__(self, matcher: PatternMatcher) -> None:
        self._matcher = matcher

    def __call__(self, path: PurePath) -> bool:
        return not self._matcher(path)

    def __invert__(self) -> PatternMatcher:
        return self._matcher


class FilePatternMatcher(PatternMatcher):
    """Matches paths against ``.dockerignore`` patterns; a later pattern wins over an earlier one.

    ``*`` and ``?`` stay within a folder's name, ``**`` crosses folders, ``[a-z]`` is a class of
    characters, ``!pattern`` takes back. What lies under a folder that matches, matches.

    Args:
        *pattern: the patterns; none match nothing.

    Raises:
        ValueError: when a pattern cannot be understood.

    Example:
        >>> FilePatternMatcher("*.txt", "!keep.txt")(Path("notes.txt"))
        True
    """

    def __init__(self, *pattern: str) -> None:
        self._read: Callable[[], Iterable[str]] | None = None
        self._rules = _compile(pattern)

    @classmethod
    def from_file(cls, file_path: str | Path) -> FilePatternMatcher:
        """Take the patterns from a file, one a line, ``#`` starting a comment; read on first use.

        Example:
            >>> _ = Path(".dockerignore").write_text("*.txt")
            >>> FilePatternMatcher.from_file(".dockerignore")(Path("notes.txt"))
            True
        """
        matcher = cls()
        path = Path(file_path)
        matcher._read = lambda: _lines(path.read_text(encoding="utf-8-sig"))
        return matcher

    def can_prune_directories(self) -> bool:
        """Say whether nothing below a directory that matches can be left: no pattern takes any back.

        Example:
            >>> FilePatternMatcher("node_modules").can_prune_directories()
            True
        """
        self._load()
        return not any(takes_back for takes_back, _ in self._rules)

    def _is_empty(self) -> bool:
        """Say whether there are no patterns, so that nothing matches."""
        self._load()
        return not self._rules

    def _load(self) -> None:
        if self._read is not None:
            self._rules = _compile(self._read())
            self._read = None

    def __call__(self, path: PurePath) -> bool:
        self._load()
        if not self._rules:
            return False
        name = posixpath.normpath(path.as_posix()).lstrip("/")
        matched = False
        for takes_back, rule in self._rules:
            # A rule that would change nothing need not be tried.
            if matched == takes_back and rule.match(name):
                matched = not takes_back
        return matched


def can_prune_directories(ignore: Callable[[Path], bool]) -> bool:
    """Say whether what is given as ``ignore`` leaves nothing below a directory that it matches."""
    return isinstance(ignore, PatternMatcher) and ignore.can_prune_directories()


def as_matcher(ignore: Sequence[str] | Callable[[Path], bool]) -> Callable[[Path], bool]:
    """Return a predicate for what users give as ``ignore``: patterns, or a callable already."""
    if callable(ignore):
        return ignore
    return FilePatternMatcher(*ignore)


def _lines(text: str) -> list[str]:
    # Other characters that end a line for Python may stand in a name.
    return [line for line in text.split("\n") if not line.startswith("#")]


def _compile(patterns: Iterable[str]) -> list[tuple[bool, re.Pattern[str]]]:
    rules = []
    for text in patterns:
        pattern = text.strip()
        if not pattern:
            continue
        takes_back = pattern.startswith("!")
        if takes_back:
            pattern = pattern[1:].strip()
            if not pattern:
                raise ValueError('Illegal exclusion pattern: "!"')
        # Once more: the space of "a /" ends the pattern only now.
        pattern = posixpath.normpath(pattern).lstrip("/").strip()
        if takes_back and not pattern:
            raise ValueError(f"Illegal exclusion pattern: {text.strip()!r}")
        pattern = pattern or "."
        if os.sep == "\\":
            pattern = pattern.replace("\\", "/")
        # The tail makes what lies under a matching folder match.
        rules.append((takes_back, re.compile(_to_regex(pattern) + r"(?:/.*)?\Z", re.DOTALL)))
    return rules


def _to_regex(pattern: str) -> str:
    out: list[str] = []
    position, end = 0, len(pattern)
    while position < end:
        char = pattern[position]
        position += 1
        if char == "*":
            if not pattern.startswith("*", position):
                out.append("[^/]*")
                continue
            position += 1
            position += pattern.startswith("/", position)
            if position == end or (position == 2 and not _SPECIAL.search(pattern, 2)):
                # All that is in them; or whatever ends in this, as Docker has it, not whole names alone.
                out.append(".*")
            else:
                # Any number of folders.
                out.append("(?:.*/)?")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            position, text = _character_class(pattern, position)
            out.append(text)
        elif char == "\\":
            if position == end:
                raise ValueError(f"Bad pattern {pattern!r}: it ends in a backslash")
            out.append(re.escape(pattern[position]))
            position += 1
        else:
            out.append(re.escape(char))
    return "".join(out)


def _character_class(pattern: str, position: int) -> tuple[int, str]:
    """Read a class after its ``[``; return where it ends and its regular expression."""
    bad = ValueError(f"Bad pattern {pattern!r}: a '[' has no well-formed end")

    def one(at: int) -> tuple[int, str]:
        if at < len(pattern) and pattern[at] == "\\":
            at += 1
        elif at >= len(pattern) or pattern[at] in "-]":
            raise bad
        if at >= len(pattern):
            raise bad
        return at + 1, pattern[at]

    negated = pattern.startswith("^", position)
    position += negated
    parts: list[str] = []
    while not parts or not pattern.startswith("]", position):
        position, low = one(position)
        high = low
        if pattern.startswith("-", position):
            position, high = one(position + 1)
        if low <= high:
            parts.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            parts.append("")
    body = "".join(parts)
    if not body:
        return position + 1, "." if negated else r"(?!)"
    # Unlike wildcards, a class may take the border of two folders, as it does for Docker.
    return position + 1, f"[^{body}]" if negated else f"[{body}]"
