"""Every error and warning that the library raises on purpose.

The bases matter to ``except`` clauses, so here is the whole tree::

    BaseException
     ├── InputCancellation
     └── Exception
          ├── Error
          │    ├── AlreadyExistsError
          │    ├── AuthError
          │    ├── ClientClosed
          │    ├── ConnectionError
          │    ├── DataLossError
          │    ├── DeserializationError
          │    ├── ExecutionError
          │    │    ├── OutOfDiskError
          │    │    └── OutOfMemoryError
          │    ├── FilesystemExecutionError
          │    ├── InternalError
          │    ├── InternalFailure
          │    ├── InvalidError
          │    │    └── ConflictError
          │    ├── NotFoundError
          │    ├── PermissionDeniedError
          │    ├── RemoteError
          │    │    └── ImageBuildError
          │    ├── RequestSizeError
          │    ├── ResourceExhaustedError
          │    ├── SandboxTerminatedError
          │    ├── SerializationError
          │    ├── ServiceError
          │    ├── TimeoutError
          │    │    ├── FunctionTimeoutError
          │    │    ├── InteractiveTimeoutError
          │    │    ├── MountUploadTimeoutError
          │    │    ├── OutputExpiredError
          │    │    ├── SandboxTimeoutError
          │    │    └── VolumeUploadTimeoutError
          │    ├── UnimplementedError
          │    └── VersionError
          ├── ModuleNotMountable
          └── Warning
               └── UserWarning
                    ├── AsyncUsageWarning
                    ├── DeprecationError
                    ├── PendingDeprecationError
                    └── ServerWarning

Programs for newer versions of Modal name some that nothing here raises, so that their ``except`` clauses
hold; each says what is raised in its place.

`TimeoutError` and `ConnectionError` here are not the builtins of the same name. Waiting for a result
too long (``FunctionCall.get(timeout=)``) raises the *builtin* ``TimeoutError``.
"""

from __future__ import annotations


class Error(Exception):
    """Base class of the library's errors: ``except modal.Error`` catches them all.

    Example:
        >>> try:
        ...     modal.App.lookup("no-such-app")
        ... except modal.Error as error:
        ...     type(error).__name__
        'NotFoundError'
    """


class AlreadyExistsError(Error):
    """An object of that name is there already."""


class AuthError(Error):
    """The server refused the credentials, or they do not allow this action."""


class ClientClosed(Error):
    """The client was closed before the request ended."""


class ConnectionError(Error):
    """The server cannot be reached, or the connection was lost for good."""


class DataLossError(Error):
    """Stored data is lost. Not raised here: what is missing is ``NotFoundError``."""


class DeserializationError(Error):
    """A value that arrived cannot be loaded, mostly because a module is missing here."""


class ExecutionError(Error):
    """An object was used in a state in which it cannot be used."""


class OutOfDiskError(ExecutionError):
    """A container kept more in files than its ``ephemeral_disk=`` and was ended; the text says how much."""


class OutOfMemoryError(ExecutionError):
    """A container used more memory than its limit and was ended; the text says how much, and what to give."""


class FilesystemExecutionError(Error):
    """A file operation inside a container failed."""


class InternalError(Error):
    """The server failed. Not raised here: it is ``InternalFailure`` or ``ExecutionError``."""


class InternalFailure(Error):
    """The platform failed, not the user's code; such inputs are tried again by themselves."""


class InvalidError(Error):
    """Something was used in a way that cannot work: a bad argument, a bad name, a bad place."""


class ConflictError(InvalidError):
    """Two changes contradict each other. Not raised here: it is ``InvalidError``, this one's base."""


class NotFoundError(Error):
    """A named object does not exist."""


class PermissionDeniedError(Error):
    """The credentials do not allow this action. Not raised here: it is ``AuthError``."""


class RemoteError(Error):
    """The other side ended the work: a container was lost too often, or a call was terminated."""


class ImageBuildError(RemoteError):
    """A build step of an Image failed; the text names the step and ends in the builder's last lines.

    Attributes:
        image_id: the Image's id, or empty where it is not known.
    """

    def __init__(self, message: str = "", image_id: str = "") -> None:
        super().__init__(message)
        self.image_id = image_id


class RequestSizeError(Error):
    """A request is larger than the server takes."""


class ResourceExhaustedError(Error):
    """A limit of the server is reached. Not raised here: it is ``InvalidError`` or ``RequestSizeError``."""


class SandboxTerminatedError(Error):
    """A Sandbox was terminated from outside."""


class SerializationError(Error):
    """A value cannot be pickled."""


class ServiceError(Error):
    """The server is not at work. Not raised here: it is ``ConnectionError``, after tries of its own."""


class TimeoutError(Error):
    """Base class of the library's time-outs; not the builtin ``TimeoutError``."""


class FunctionTimeoutError(TimeoutError):
    """One input ran longer than the Function's ``timeout``."""


class InteractiveTimeoutError(TimeoutError):
    """An interactive session could not be set up in time."""


class MountUploadTimeoutError(TimeoutError):
    """Local files could not be uploaded in time."""


class OutputExpiredError(TimeoutError):
    """The result is no longer kept."""


class SandboxTimeoutError(TimeoutError):
    """A Sandbox ran longer than its ``timeout``."""


class VolumeUploadTimeoutError(TimeoutError):
    """Files could not be uploaded to a Volume in time."""


class UnimplementedError(Error):
    """The server does not know the request. Not raised here: it is ``VersionError``."""


class VersionError(Error):
    """Client and server are of versions that cannot work together."""


class ModuleNotMountable(Exception):
    """A Python module cannot be added to an Image: it is not found here, or is no source module."""


class AsyncUsageWarning(UserWarning):
    """A blocking call stops an event loop. Not given here: such calls work."""


class DeprecationError(UserWarning):
    """An old name or form was used that still works. Category of warnings; shown by default."""


class PendingDeprecationError(UserWarning):
    """A form was used that will become deprecated. Category of warnings."""


class ServerWarning(UserWarning):
    """The server has something to say about the client. Category of warnings."""


class InputCancellation(BaseException):
    """Raised inside user code when its input is cancelled.

    It derives from ``BaseException`` so that ``except Exception`` in user code does not swallow it.
    """


def simulate_preemption(wait_seconds: int, jitter_seconds: int = 0) -> None:
    """Interrupt this process as a preemption does: a SIGINT now-ish, a second one 30 seconds later.

    Args:
        wait_seconds: seconds until the first signal; above 0.
        jitter_seconds: up to this many random seconds are added.

    Raises:
        ValueError: when ``wait_seconds`` is 0 or less.
    """
    if wait_seconds <= 0:
        raise ValueError(f"wait_seconds is {wait_seconds}; give a number above 0")
    import os
    import random
    import signal
    import threading

    def interrupt(again: bool) -> None:
        # The process as a whole is addressed: Python runs its handler in the main thread.
        os.kill(os.getpid(), signal.SIGINT)
        if again:
            start(PREEMPTION_GRACE_SECONDS, False)

    def start(delay: float, again: bool) -> None:
        timer = threading.Timer(delay, interrupt, (again,))
        timer.daemon = True
        timer.start()

    start(wait_seconds + random.uniform(0, jitter_seconds), True)


PREEMPTION_GRACE_SECONDS = 30.0
