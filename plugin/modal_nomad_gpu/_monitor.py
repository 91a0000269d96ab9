"""Looks at the cards, now and then and whenever the driver reports something, and tells who listens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from modal_nomad_gpu._cards import Backend, BackendError, Survey
from modal_nomad_gpu._config import Config
from modal_nomad_gpu._health import Health
from modal_nomad_gpu._inventory import Group, inventory
from modal_nomad_gpu._log import log
from modal_nomad_gpu._stats import device_stats

_FIRST_LOOK_SECONDS = 60.0
_PATIENCE_SECONDS = 30.0


class Monitor:
    """The current devices.

    Args:
        backend: where cards come from.
        config: what is offered of them.
        patience: seconds that a look may take.
    """

    def __init__(self, backend: Backend, config: Config, patience: float = _PATIENCE_SECONDS) -> None:
        self._backend = backend
        self._config = config
        self._patience = patience
        self._survey: futures.Future[Survey] | None = None
        self._health = Health(config.ignored_xids)
        self._news = threading.Condition()
        self._groups: list[Group] | None = None
        self._version = 0
        self._mps = False
        self._said = ""
        self._unwell: dict[str, str] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look; a second call does nothing."""
        with self._news:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End every ``watch``."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def wake(self) -> None:
        """Have every ``watch`` look whether it is still wanted."""
        with self._news:
            self._news.notify_all()

    def now(self) -> tuple[list[Group], bool]:
        """Return the devices, after the first look, and whether the MPS daemon runs."""
        self.start()
        with self._news:
            self._news.wait_for(lambda: self._groups is not None or self._closed, _FIRST_LOOK_SECONDS)
            return self._groups or [], self._mps

    def watch(self, wanted: Callable[[], bool]) -> Iterator[Sequence[Group]]:
        """Yield the devices now, then whenever they changed, while ``wanted()``."""
        self.start()
        seen = 0
        while True:
            with self._news:
                while self._version == seen and not self._closed and wanted():
                    self._news.wait()
                if self._closed or not wanted():
                    return
                seen, groups = self._version, self._groups or []
            yield groups

    def stats(self) -> dict[str, object]:
        """Return what all devices do now. Raises BackendError when the driver does not answer."""
        groups, _ = self.now()
        return device_stats(groups, self._backend.usage())

    def _run(self) -> None:
        while not self._closed:
            try:
                self._look()
                if self._survey is not None:
                    # Who still looks may let go of that in which events are waited for.
                    futures.wait((self._survey,), self._config.fingerprint_period)
                    continue
                for event in self._backend.events(self._config.fingerprint_period):
                    counts = self._health.report(event)
                    level, words = ("error", "") if counts else ("info", ", an error of its program: ignored")
                    log(level, f"{event.uuid}: XID {event.xid}{words}")
            except Exception as error:
                # Without this thread a node would offer for ever what it had when the thread ended.
                log("error", f"looking at the cards: {type(error).__name__}: {error}")
                threading.Event().wait(self._config.fingerprint_period)

    def _look(self) -> None:
        try:
            checked = self._health.check(self._found())
            self._say("")
        except BackendError as error:
            checked = self._health.silent(str(error))
            self._say(f"no cards: {error}; looking again every {self._config.fingerprint_period:g} s")
        mps = self._backend.mps_ready(self._config.mps_pipe_directory)
        groups = inventory(checked, self._config, mps=mps)
        self._compare(groups, mps)
        with self._news:
            self._mps = mps
            if groups != self._groups:
                self._groups = groups
                self._version += 1
                self._news.notify_all()

    def _found(self) -> Survey:
        """Return what a look finds. Raises BackendError when the driver does not answer, or not soon."""
        if self._survey is None:
            self._survey = futures.Future()
            # A call into a driver that hangs never returns; nobody waits for its thread.
            look = threading.Thread(target=_fulfil, args=(self._survey, self._backend.survey), daemon=True)
            look.start()
        try:
            found = self._survey.result(self._patience)
        except futures.TimeoutError:
            raise BackendError(f"a look at the cards takes longer than {self._patience:g} s") from None
        except BaseException:
            self._survey = None
            raise
        self._survey = None
        return found

    def _compare(self, groups: Sequence[Group], mps: bool) -> None:
        unwell = {device.id: device.fault for group in groups for device in group.devices if device.fault}
        for name in sorted(unwell.keys() - self._unwell.keys()):
            log("error", f"{name} is not healthy: {unwell[name]}")
        for name in sorted(self._unwell.keys() - unwell.keys()):
            log("info", f"{name} is healthy again")
        self._unwell = unwell
        slices = any(device.memory for group in groups for device in group.devices)
        if slices and not mps and (self._mps or self._groups is None):
            where = self._config.mps_pipe_directory
            log("warn", f"no MPS control daemon listens in {where}: slices are not held to their share")

    def _say(self, words: str) -> None:
        if words and words != self._said:
            log("warn", words)
        self._said = words


def _fulfil(answer: futures.Future[Survey], ask: Callable[[], Survey]) -> None:
    try:
        answer.set_result(ask())
    except BaseException as error:
        answer.set_exception(error)
