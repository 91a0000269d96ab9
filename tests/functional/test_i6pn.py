"""``i6pn=True``: containers talk to each other at the address that each finds of itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad import exception
from modal_nomad.worker._i6pn import answer_for, own_address


def test_containers_talk_to_each_other(live: Live) -> None:
    app = modal.App("private-network")

    @app.function(serialized=True, i6pn=True, max_containers=1, timeout=200)
    def listens(box: modal.Queue) -> bytes:
        import socket

        (found,) = {x[4][0] for x in socket.getaddrinfo("i6pn.modal.local", None, socket.AF_INET6)}
        with socket.create_server((found, 0), family=socket.AF_INET6) as server:
            box.put((found, server.getsockname()[1]))
            server.settimeout(150)
            with server.accept()[0] as peer:
                peer.settimeout(150)
                said = peer.recv(100)
                peer.sendall(said[::-1])
                return said

    @app.cls(serialized=True, i6pn=True)
    class Speaks:
        @modal.method()
        async def say(self, address: tuple[str, int], words: bytes) -> bytes:
            import asyncio

            reader, writer = await asyncio.open_connection(*address)
            writer.write(words)
            answer = await reader.readexactly(len(words))
            writer.close()
            return answer

    with modal.Queue.ephemeral() as box, app.run():
        call = listens.spawn(box)
        address = box.get(timeout=150)
        assert Speaks().say.remote(address, b"hello") == b"olleh"
        assert call.get(timeout=150) == b"hello"


@pytest.fixture
def _name_of_nobody() -> Iterator[None]:
    before = socket.getaddrinfo
    yield
    socket.getaddrinfo = before


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ("10.1.2.3", "::ffff:10.1.2.3"),
        ("fdaa::3", "fdaa::3"),
        ("${attr.unique.network.ip-address}", own_address("")),
    ],
)
async def test_the_name_is_found_as_the_nodes_address(told: str, address: str, _name_of_nobody: None) -> None:
    assert own_address(told) == address
    answer_for(own_address(told))
    found = await asyncio.get_running_loop().getaddrinfo("i6pn.modal.local", 80, family=socket.AF_INET6)
    assert {x[4][:2] for x in found} == {(address, 80)}
    assert socket.getaddrinfo("127.0.0.1", 80)[0][4] == ("127.0.0.1", 80)


def test_only_true_and_false(live: Live) -> None:
    with pytest.raises(exception.InvalidError, match="i6pn is 'yes'"):
        modal.App("a").function(i6pn="yes")  # type: ignore[arg-type]
