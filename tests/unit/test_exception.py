"""The exception tree: bases decide what ``except`` catches."""

import builtins
import re
import signal
import threading

import pytest

from modal_nomad import exception
from modal_nomad.wire.serialization import pack_exception, unpack_exception

UNDER_TIMEOUT = [
    "FunctionTimeoutError",
    "InteractiveTimeoutError",
    "MountUploadTimeoutError",
    "OutputExpiredError",
    "SandboxTimeoutError",
    "VolumeUploadTimeoutError",
]
UNDER_ERROR = [
    "AlreadyExistsError",
    "AuthError",
    "ClientClosed",
    "ConnectionError",
    "DataLossError",
    "DeserializationError",
    "ExecutionError",
    "FilesystemExecutionError",
    "InternalError",
    "InternalFailure",
    "InvalidError",
    "NotFoundError",
    "PermissionDeniedError",
    "RemoteError",
    "RequestSizeError",
    "ResourceExhaustedError",
    "SandboxTerminatedError",
    "SerializationError",
    "ServiceError",
    "TimeoutError",
    "UnimplementedError",
    "VersionError",
]
BASES = {
    **dict.fromkeys(UNDER_ERROR, "Error"),
    **dict.fromkeys(UNDER_TIMEOUT, "TimeoutError"),
    **dict.fromkeys(
        ["AsyncUsageWarning", "DeprecationError", "PendingDeprecationError", "ServerWarning"], "UserWarning"
    ),
    "ConflictError": "InvalidError",
    "Error": "Exception",
    "ImageBuildError": "RemoteError",
    "InputCancellation": "BaseException",
    "ModuleNotMountable": "Exception",
    "OutOfDiskError": "ExecutionError",
    "OutOfMemoryError": "ExecutionError",
}


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_base(name: str, base: str) -> None:
    expected = getattr(exception, base, None) or getattr(builtins, base)
    assert getattr(exception, name).__bases__ == (expected,)


def test_all_are_in_the_table_and_drawn_in_the_docstring() -> None:
    defined = {n for n, v in vars(exception).items() if isinstance(v, type) and issubclass(v, BaseException)}
    drawn = set(re.findall(r"[├└]── (\w+)", exception.__doc__ or ""))
    assert defined == set(BASES)
    assert defined == drawn - {"Exception", "Warning", "UserWarning"}


def test_own_timeout_is_not_the_builtin() -> None:
    assert not issubclass(exception.TimeoutError, builtins.TimeoutError)
    assert not issubclass(exception.ConnectionError, builtins.ConnectionError)


@pytest.mark.parametrize("seconds", [0, -1])
def test_simulate_preemption_needs_a_wait(seconds: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        exception.simulate_preemption(seconds)


def test_simulate_preemption_signals_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    delays, signals = [], []

    class AtOnce:
        def __init__(self, delay, function, args):
            delays.append(delay)
            self.start = lambda: function(*args)

    monkeypatch.setattr(threading, "Timer", AtOnce)
    monkeypatch.setattr("os.kill", lambda pid, number: signals.append(number))
    exception.simulate_preemption(5, 2)
    assert signals == [signal.SIGINT, signal.SIGINT]
    assert 5 <= delays[0] <= 7 and delays[1] == 30


class Odd(Exception):
    def __init__(self, *, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code, self.where = code, where


def test_a_constructor_of_other_parameters_does_not_matter() -> None:
    """Pickle calls ``Odd("3 at here")``, which it does not take; it arrives as itself all the same."""
    error = unpack_exception(pack_exception(Odd(code=3, where="here")))
    assert type(error) is Odd
    assert (str(error), error.code, error.where) == ("3 at here", 3, "here")


def test_one_that_cannot_be_put_together_is_told_in_words() -> None:
    error = Odd(code=3, where="here")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    told = unpack_exception(pack_exception(error))
    assert type(told) is exception.ExecutionError and "Odd: 3 at here" in str(told)
