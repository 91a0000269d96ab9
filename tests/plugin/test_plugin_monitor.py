"""Who looks at the cards, with a driver that hangs."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from modal_nomad_gpu._cards import Card, Event, Survey, Usage
from modal_nomad_gpu._config import Config
from modal_nomad_gpu._monitor import Monitor

CARD = Card("GPU-a", "NVIDIA L4", 23034)


class Driver:
    """Answers while it may."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0
        self.waits = 0

    def survey(self) -> Survey:
        self.asked += 1
        self.answers.wait(100)
        return Survey("550", (CARD,))

    def events(self, seconds: float) -> Sequence[Event]:
        self.waits += 1
        threading.Event().wait(0.01)
        return ()

    def usage(self) -> Mapping[str, Usage]:
        return {}

    def mps_ready(self, pipe_directory: str) -> bool:
        return False


def test_a_driver_that_hangs_takes_its_cards_along_until_it_answers() -> None:
    driver = Driver()
    monitor = Monitor(driver, Config(fingerprint_period=0.05), patience=0.05)
    told = (groups[0].devices[0].fault for groups in monitor.watch(lambda: True))
    try:
        assert next(told) == ""
        driver.answers.clear()
        assert next(told) == "the driver does not answer: a look at the cards takes longer than 0.05 s"
        # Nobody waits for events in what is perhaps let go, and no thread is added to the one that hangs.
        before = driver.asked, driver.waits
        threading.Event().wait(0.2)
        assert (driver.asked, driver.waits) == before
        driver.answers.set()
        assert next(told) == ""
    finally:
        driver.answers.set()
        monitor.close()
