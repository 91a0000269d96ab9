"""What an allocation of a periodic job runs: it has the dispatcher make the call, and ends as that ends.

The call has an id that follows from the launched job's: however often it is asked for, it is made once.
"""

import os
import sys
import time
from typing import Mapping, Optional

from ..wire import frames
from ..wire.transport import BlobClient

WAIT = 30
"""Seconds that the dispatcher may hold an answer back."""
_PATIENCE = 60.0
_FIRST_DELAY = 0.5
_LAST_DELAY = 15.0


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Have the call made and wait for its end; returns the exit code, 0 when it succeeded."""
    client = BlobClient(environ["MODAL_SERVER_URL"], lambda: _token(environ), timeout=_PATIENCE)
    delay = _FIRST_DELAY
    while True:
        code = None
        try:
            code = _ask(client)
            if code is None:
                delay = _FIRST_DELAY
                continue
        except OSError as error:
            # A dispatcher that is being replaced: the run is not lost as long as somebody asks for it.
            _say(f"the dispatcher cannot be asked now: {error}")
        if code is not None:
            return code
        time.sleep(delay)
        delay = min(_LAST_DELAY, delay * 2)


def _ask(client: BlobClient) -> Optional[int]:
    status, body = client.exchange("POST", f"/v1/schedules/launch?wait={WAIT}")
    if status == 202:
        return None
    if status in (401, 403, 404):
        _say(f"the dispatcher refused: {body.decode(errors='replace')}")
        return 1
    if status != 200:
        raise OSError(f"it answered {status}: {body[:200].decode(errors='replace')}")
    if body[:1] == bytes([frames.SUCCESS]):
        return 0
    _say(_reason(body[0] if body else frames.FAILURE, body[1:]))
    return 1


def _reason(status: int, body: bytes) -> str:
    if status == frames.TIMEOUT:
        return "the scheduled run took longer than the Function's timeout"
    if status == frames.TERMINATED:
        return "the scheduled run was cancelled"
    from ..wire.serialization import unpack_exception

    return f"the scheduled run failed: {unpack_exception(body)}" if body else "the scheduled run failed"


def _token(environ: Mapping[str, str]) -> str:
    with open(environ["MODAL_WORKER_TOKEN_FILE"], encoding="utf-8") as file:
        return file.read().strip()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
