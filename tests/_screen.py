"""A terminal's screen, as far as this project's output uses one."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\].*?(?:\x07|\x1b\\)")


class Screen:
    """Takes what is written to a terminal and says what is to be seen.

    Args:
        width: columns; longer lines wrap.
    """

    def __init__(self, width: int = 80) -> None:
        self._width = width
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        """Write to it."""
        position = 0
        for match in _CONTROL.finditer(text):
            self._put(text[position : match.start()])
            self._control(match.group(2) or "", match.group(1) or "")
            position = match.end()
        self._put(text[position:])

    def lines(self) -> list[str]:
        """Return the lines, without trailing blanks and without the empty ones at the end."""
        lines = ["".join(row).rstrip() for row in self._rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _put(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self._row, self._column = self._row + 1, 0
            elif character == "\r":
                self._column = 0
                continue
            else:
                if self._column == self._width:
                    self._row, self._column = self._row + 1, 0
                self._line()[self._column : self._column + 1] = [character]
                self._column += 1
            self._line()

    def _line(self) -> list[str]:
        while len(self._rows) <= self._row:
            self._rows.append([])
        row = self._rows[self._row]
        row.extend(" " * (self._column - len(row)))
        return row

    def _control(self, kind: str, arguments: str) -> None:
        if kind == "A":
            self._row = max(0, self._row - int(arguments or 1))
        elif kind in "KJ" and kind:
            del self._line()[self._column :]
            if kind == "J":
                del self._rows[self._row + 1 :]
