"""How long a container that was told to end has: its signals against its grace period."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from modal_nomad.worker._ending import FOREVER, Ending


@pytest.fixture
def ending() -> Iterator[Ending]:
    one = Ending(30.0)
    before = signal.signal(signal.SIGTERM, lambda number, frame: one.note(number, None))
    try:
        yield one
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("grace", "cleaning"), [(30.0, 4.0), (8.0, 3.2), (1.0, 0.4)])
def test_what_outlives_the_grace_period_has_its_end_for_cleaning_up(grace: float, cleaning: float) -> None:
    one = Ending(grace)
    one.begin(signal.SIGTERM)
    assert one.last - one.interrupt_at == pytest.approx(cleaning)


def test_its_own_interruption_leaves_what_was_left(ending: Ending) -> None:
    signal.raise_signal(signal.SIGTERM)
    last = ending.last
    ending.interrupt()
    assert (ending.signals, ending.last, ending.interrupt_at) == (2, last, FOREVER)


def test_a_second_signal_from_outside_leaves_five_seconds(ending: Ending) -> None:
    signal.raise_signal(signal.SIGTERM)
    last = ending.last
    signal.raise_signal(signal.SIGTERM)
    assert ending.signals == 2 and ending.last < last - 20
    after = ending.last
    ending.interrupt()
    assert ending.last == after
