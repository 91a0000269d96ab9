"""Tracebacks as data: what a container raised is shown where it was called, with its lines and carets.

Where the caller has the very module, its own file is named instead of the container's, so that an editor
opens the right one.
"""

import ast
import linecache
import os
import sys
from types import CodeType, TracebackType
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .main_module import NAMES, import_name

# Line, end line, column, end column, as code objects have them; columns count bytes of UTF-8.
_Position = Tuple[Optional[int], Optional[int], Optional[int], Optional[int]]


def pack(tb: Optional[TracebackType]) -> List[Dict[str, Any]]:
    """Return a traceback as plain data, outermost frame first."""
    frames: List[Dict[str, Any]] = []
    while tb is not None:
        code = tb.tb_frame.f_code
        if not is_runtime(code.co_filename):
            start, end, left, right = _position(code, tb.tb_lasti)
            known = start == tb.tb_lineno and end is not None
            frames.append(
                {
                    "file": code.co_filename,
                    "name": code.co_name,
                    "module": _module_name(tb.tb_frame.f_globals),
                    "line": tb.tb_lineno,
                    "place": [end, left, right] if known else None,
                    "text": linecache.getline(code.co_filename, tb.tb_lineno, tb.tb_frame.f_globals),
                }
            )
        tb = tb.tb_next
    return frames


def unpack(frames: List[Dict[str, Any]]) -> Optional[TracebackType]:
    """Return a traceback made of what ``pack`` returned; None for no frames."""
    tb: Optional[TracebackType] = None
    for frame in reversed(frames):
        filename = _file_here(frame["module"], frame["file"], frame["line"], frame["text"])
        code = _raising(filename, frame["name"], frame["line"], frame["place"])
        own = {"__name__": frame["module"], "__file__": filename}
        try:
            exec(code, own)
        except Exception as error:
            raised = error.__traceback__
            while raised is not None and raised.tb_frame.f_code is not code:
                raised = raised.tb_next
            if raised is not None:
                tb = TracebackType(tb, raised.tb_frame, raised.tb_lasti, frame["line"])
    return tb


def is_runtime(filename: str) -> bool:
    """Say whether it is this package's part that only carries calls: no user wants to read about it."""
    path = filename.replace("\\", "/")
    return "modal_nomad/worker/" in path or path.endswith("modal_nomad/_bridge.py")


def _position(code: CodeType, instruction: int) -> _Position:
    # From Python 3.11 on.
    positions = getattr(code, "co_positions", None)
    if positions is None or instruction < 0:
        return None, None, None, None
    every: Iterator[_Position] = positions()
    for at, position in enumerate(every):
        if at == instruction // 2:
            return position
    return None, None, None, None


def _module_name(names: Dict[str, Any]) -> str:
    name = names.get("__name__")
    return name if isinstance(name, str) else ""


def _raising(filename: str, name: str, line: int, place: Optional[List[Optional[int]]]) -> CodeType:
    """Return code of that name which raises at that place of that file."""
    tree = ast.parse("raise Exception")
    end, left, right = place or (line, None, None)
    if left is None or right is None or end is None:
        # No columns: a caret below the wrong word says more than is known.
        end, left, right = line, -1, -1
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno, node.end_lineno = line, end
            node.col_offset, node.end_col_offset = left, right
    code: CodeType = compile(tree, filename, "exec")
    changes = {"co_name": name}
    if sys.version_info >= (3, 11):
        changes["co_qualname"] = name
    return code.replace(**changes)  # type: ignore[arg-type]


def _file_here(module: str, remote: str, line: int, text: str) -> str:
    """Return the file that shows a remote frame's line: the caller's own one, else the remote path."""
    for loaded in (module, *NAMES):
        name, file = import_name(loaded)
        if name != module or file is None or not _is_copy(remote, file, name):
            continue
        if not text or linecache.getline(file, line).strip() == text.strip():
            return file
    if text and not os.path.exists(remote):
        _remember(remote, line, text)
    return remote


def _is_copy(remote: str, file: str, module: str) -> bool:
    """Say whether both paths end as the module's name does."""
    parts = len(module.split(".")) + (os.path.basename(file) == "__init__.py")
    return file.split(os.sep)[-parts:] == remote.replace("\\", "/").split("/")[-parts:]


def _remember(filename: str, line: int, text: str) -> None:
    """Let a line of a file that is not here be shown."""
    known = linecache.cache.get(filename)
    lines = list(known[2]) if known is not None and len(known) == 4 else []
    lines += ["\n"] * (line - len(lines))
    lines[line - 1] = text
    # Without a time of change nobody looks for the file on the disk.
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
