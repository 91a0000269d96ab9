"""What a container writes of an answer, in one part with its head."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from modal_nomad.worker._web_front import Seen

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Written:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)

    def write_eof(self) -> None:
        self.parts.append(b"eof")

    def close(self) -> None:
        self.parts.append(b"closed")


async def test_a_head_goes_out_with_what_is_behind_it() -> None:
    transport = Written()
    front: Any = SimpleNamespace(transport=transport)
    seen = Seen(front)
    seen.write(HEAD)
    assert transport.parts == []
    seen.write(b"ok")
    seen.write(b"more")
    assert transport.parts == [HEAD + b"ok", b"more"]
    # Where there is nothing behind it yet, in the next round.
    seen.write(HEAD)
    await asyncio.sleep(0)
    assert transport.parts[2:] == [HEAD]
    for end in (seen.close, seen.write_eof):
        seen.write(HEAD)
        end()
    assert transport.parts[3:] == [HEAD, b"closed", HEAD, b"eof"]
    seen.writelines([HEAD[:9], HEAD[9:]])
    seen.write(b"")
    await asyncio.sleep(0)
    assert transport.parts[-1] == HEAD
