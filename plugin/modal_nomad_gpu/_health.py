"""Which cards may be used: what was reported, and what is found at every look."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from modal_nomad_gpu._cards import Card, Event, Survey

# In a few words, for the operator who reads it in Nomad; all others go by their number.
_XIDS = {
    32: "corrupted commands, mostly by the PCIe link",
    46: "stopped processing",
    48: "double-bit ECC error",
    62: "the GPU's own controller halted",
    63: "a row or page was retired",
    64: "a row or page could not be retired",
    74: "NVLink error",
    79: "fell off the bus",
    92: "many single-bit ECC errors",
    94: "contained memory error",
    95: "uncontained memory error",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
    140: "unrecovered ECC error",
    143: "could not be initialized",
    158: "fatal time-out",
    171: "uncorrectable error of the card's memory",
    172: "uncorrectable error of the chip's memory",
}


@dataclass(frozen=True)
class Checked:
    """Cards with their health: ``faults`` by the id of a card or an instance; the others are well."""

    driver_version: str
    cards: tuple[Card, ...]
    faults: dict[str, str]


class Health:
    """Keeps what was reported since the plugin began, and the cards that were there once.

    A reported error holds until the plugin starts anew: the driver reports it once, and no later look
    shows whether somebody has seen to it.

    Args:
        ignored_xids: errors that do not count.
    """

    def __init__(self, ignored_xids: Collection[int] = ()) -> None:
        self._ignored = frozenset(ignored_xids)
        self._reported: dict[str, str] = {}
        self._seen: dict[str, Card] = {}
        self._driver_version = ""

    def report(self, event: Event) -> bool:
        """Take an error that the driver reported; True when it counts."""
        if event.xid in self._ignored:
            return False
        words = _XIDS.get(event.xid, "see NVIDIA's list of XID errors")
        self._reported.setdefault(event.uuid, f"XID {event.xid}: {words}")
        return True

    def check(self, survey: Survey) -> Checked:
        """Return all cards ever seen: those that do not answer any more are lost."""
        self._driver_version = survey.driver_version
        there = {card.uuid for card in survey.cards}
        self._seen.update((card.uuid, card) for card in survey.cards)
        gone = {
            uuid: "fell off the bus: the driver lists it no more" for uuid in self._seen if uuid not in there
        }
        return self._checked({**gone, **survey.faults})

    def silent(self, reason: str) -> Checked:
        """Return all cards ever seen when the driver answers nothing at all."""
        words = f"the driver does not answer: {reason}"
        return self._checked(dict.fromkeys(self._seen, words))

    def _checked(self, faults: dict[str, str]) -> Checked:
        cards = tuple(card for _, card in sorted(self._seen.items()))
        return Checked(self._driver_version, cards, {**faults, **self._reported})


def instance_fault(checked: Checked, card: Card, uuid: str) -> str:
    """Return what is wrong with an instance of a card, or with the card itself; empty when all is well."""
    return checked.faults.get(uuid) or checked.faults.get(card.uuid, "")


def without(checked: Checked, ignored: Collection[str]) -> Checked:
    """Return the same without the cards and instances that the operator left out."""
    cards = tuple(
        replace(card, mig=tuple(x for x in card.mig if x.uuid not in ignored)) if card.mig else card
        for card in checked.cards
        if card.uuid not in ignored
    )
    return replace(checked, cards=cards)
