"""Frames that bring inputs: the short way to write one says the same as the long one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modal_nomad.wire import frames
from modal_nomad.wire._call import Call
from modal_nomad.wire.input_frames import batches, waited_frame

inputs = st.lists(st.tuples(st.integers(0, 2**53), st.binary(max_size=300), st.integers(0, 3)), min_size=1)


@given(inputs, st.sampled_from(["", "in-1:0"]), st.sampled_from(["", "méthode"]), st.lists(st.integers(0, 9)))
def test_a_call_says_its_inputs(
    given: list[tuple[int, bytes, int]], parent: str, method: str, acks: list[int]
) -> None:
    call = Call("fc-1", "fu-2", lambda _: None, lambda _: None, parent=parent, method=method)
    call.acks = list(acks)
    header, payloads = frames.decode(waited_frame(call, given))
    assert (header["t"], header["c"], header["f"]) == ("in", "fc-1", "fu-2")
    assert header["x"] == [index for index, _, _ in given]
    assert header.get("g", [0] * len(given)) == [flags for _, _, flags in given]
    assert payloads == [payload for _, payload, _ in given]
    assert (header.get("p", ""), header.get("m", ""), header.get("k", [])) == (parent, method, acks)
    assert call.acks == []


def test_batches_lose_nothing() -> None:
    many = [(index, b"x", 0) for index in range(1000)]
    assert [item for batch in batches(many) for item in batch] == many
    assert list(batches(many[:1])) == [many[:1]]
