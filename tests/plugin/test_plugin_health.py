"""Which cards may be used."""

from __future__ import annotations

from modal_nomad_gpu._cards import Card, Event, Survey
from modal_nomad_gpu._config import APPLICATION_XIDS
from modal_nomad_gpu._health import Health

A, B = Card("GPU-a", "NVIDIA L4", 23034), Card("GPU-b", "NVIDIA L4", 23034)


def test_a_reported_error_holds() -> None:
    health = Health(APPLICATION_XIDS)
    assert health.check(Survey("550", (A, B))).faults == {}
    assert health.report(Event("GPU-a", 48))
    assert health.report(Event("GPU-a", 64))
    for _ in range(2):
        # The first is the cause; what follows of it says less.
        assert health.check(Survey("550", (A, B))).faults == {"GPU-a": "XID 48: double-bit ECC error"}


def test_an_error_of_the_program_is_none_of_the_cards() -> None:
    health = Health(APPLICATION_XIDS)
    assert not any(health.report(Event("GPU-a", xid)) for xid in APPLICATION_XIDS)
    assert health.check(Survey("550", (A,))).faults == {}
    assert health.report(Event("GPU-a", 999))
    assert "999" in health.check(Survey("550", (A,))).faults["GPU-a"]


def test_what_nvidia_says_of_an_error_decides() -> None:
    # Memory that mended itself, and a note of what the driver is asked for anyway; then what needs a reset.
    assert {13, 31, 43, 63, 92, 154} <= set(APPLICATION_XIDS)
    assert not {32, 46, 48, 62, 64, 74, 79, 94, 95, 110, 119, 120, 140, 143, 158} & set(APPLICATION_XIDS)
    assert len(set(APPLICATION_XIDS)) == len(APPLICATION_XIDS)


def test_a_card_that_is_missed_is_lost_until_it_is_back() -> None:
    health = Health()
    health.check(Survey("550", (A, B)))
    checked = health.check(Survey("550", (B,)))
    assert checked.cards == (A, B)
    assert "fell off the bus" in checked.faults["GPU-a"]
    assert health.check(Survey("550", (A, B))).faults == {}


def test_what_the_driver_says_at_a_look_ends_with_it() -> None:
    health = Health()
    assert health.check(Survey("550", (A,), {"GPU-a": "needs a reset"})).faults == {"GPU-a": "needs a reset"}
    assert health.check(Survey("550", (A,))).faults == {}


def test_a_driver_that_does_not_answer_takes_all_its_cards_along() -> None:
    health = Health()
    assert health.silent("no library").cards == ()
    health.check(Survey("550", (A, B)))
    silent = health.silent("unloaded")
    assert silent.cards == (A, B)
    assert set(silent.faults.values()) == {"the driver does not answer: unloaded"}
    assert silent.driver_version == "550"
