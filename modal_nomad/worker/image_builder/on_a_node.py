"""What the Nomad job of the image builder runs: fetch the plan, carry it out, tell the dispatcher.

The dispatcher knows the job by its workload identity. Standard library alone, like all of the runtime.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any, Dict, List

_FLUSH_SECONDS = 0.2
# A command may say nothing for hours: whether anybody waits for it is asked this often.
_ASK_SECONDS = 15.0
# A dispatcher that is started anew knows nothing of this build, and says so.
_AWAY_SECONDS = 120.0


class _Teller:
    """Sends what happens, several events to a request."""

    def __init__(self, client: Any, path: str) -> None:
        self._client = client
        self._path = path
        self._waiting: List[Dict[str, Any]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._told = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def say(self, event: Dict[str, Any]) -> None:
        """Send an event soon."""
        if "line" in event:
            # The allocation's own log has them too.
            print(event["line"], flush=True)
        with self._lock:
            self._waiting.append(event)

    def end(self, event: Dict[str, Any]) -> None:
        """Send what is left and the last event."""
        self._over.set()
        self._thread.join()
        self.say(event)
        while self._flush() and self._waiting:
            time.sleep(1.0)

    def _run(self) -> None:
        while not self._over.wait(_FLUSH_SECONDS):
            if not self._flush():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _flush(self) -> bool:
        """Send what waits; false when the dispatcher wants nothing of it, or is away for too long."""
        with self._lock:
            events, self._waiting = self._waiting, []
        silent = time.monotonic() - self._told
        if not events and silent < _ASK_SECONDS:
            return True
        body = "".join(json.dumps(event) + "\n" for event in events).encode()
        try:
            status, said = self._client.exchange("POST", f"{self._path}/events", body)
        except OSError as error:
            with self._lock:
                self._waiting[:0] = events
            if silent < _AWAY_SECONDS:
                return True
            status, said = 0, str(error).encode()
        self._told = time.monotonic()
        if 200 <= status < 300:
            return True
        sys.stderr.write(
            f"nobody waits for this build any more: {status} {said.decode('utf-8', 'replace')}\n"
        )
        return False


def _ends(number: int, frame: Any) -> None:
    # Only once: what removes the remains must not be interrupted itself.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> int:
    """Carry out the build that the job was dispatched for; returns the exit code."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from modal_nomad.exception import ImageBuildError
    from modal_nomad.wire.transport import BlobClient
    from modal_nomad.worker.image_builder.build import Build
    from modal_nomad.worker.image_builder.secrets import SECRETS, read_secrets

    def token() -> str:
        with open(os.environ["MODAL_WORKER_TOKEN_FILE"]) as file:
            return file.read().strip()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _ends)
    client = BlobClient(os.environ["MODAL_SERVER_URL"], token)
    path = f"/v1/image-builds/{os.environ['MODAL_BUILD']}"
    status, body = client.exchange("GET", f"{path}/plan")
    if status != 200:
        sys.stderr.write(f"the dispatcher has no plan for this build: {status} {body.decode()}\n")
        return 1
    plan = json.loads(body)
    blobs = BlobClient(os.environ["MODAL_SERVER_URL"], plan["server"]["token"])
    teller = _Teller(client, path)
    try:
        leases = read_secrets(plan, os.environ.get(SECRETS), teller.say)
        if leases:
            teller.say({"leases": leases})
        Build(plan, teller.say, blobs.get).run()
    except ImageBuildError as error:
        teller.end({"end": str(error)})
        return 1
    except SystemExit:
        teller.end({"end": "the image builder was stopped; run or deploy again to build anew"})
        raise
    except BaseException as error:
        teller.end({"end": f"the image builder failed: {error!r}"})
        raise
    teller.end({"end": ""})
    return 0


if __name__ == "__main__":
    sys.exit(main())
