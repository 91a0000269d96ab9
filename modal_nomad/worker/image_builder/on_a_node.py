"""What the Nomad job of the image builder runs: fetch the plan, carry it out, tell the dispatcher.

The dispatcher knows the job by its workload identity. Standard library alone, like all of the runtime.
"""

import json
import os
import sys
import threading
from typing import Any, Dict, List

_FLUSH_SECONDS = 0.2


class _Teller:
    """Sends what happens, several events to a request."""

    def __init__(self, client: Any, path: str) -> None:
        self._client = client
        self._path = path
        self._waiting: List[Dict[str, Any]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
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
        self._flush()

    def _run(self) -> None:
        while not self._over.wait(_FLUSH_SECONDS):
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            events, self._waiting = self._waiting, []
        if not events:
            return
        body = "".join(json.dumps(event) + "\n" for event in events).encode()
        status, said = self._client.exchange("POST", f"{self._path}/events", body)
        if status >= 300:
            sys.stderr.write(f"the dispatcher refuses what this build says: {status} {said!r}\n")
            os._exit(1)


def main() -> int:
    """Carry out the build that the job was dispatched for; returns the exit code."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from modal_nomad.exception import ImageBuildError
    from modal_nomad.wire.transport import BlobClient
    from modal_nomad.worker.image_builder.build import Build

    with open(os.environ["MODAL_WORKER_TOKEN_FILE"]) as file:
        client = BlobClient(os.environ["MODAL_SERVER_URL"], file.read().strip())
    path = f"/v1/image-builds/{os.environ['MODAL_BUILD']}"
    status, body = client.exchange("GET", f"{path}/plan")
    if status != 200:
        sys.stderr.write(f"the dispatcher has no plan for this build: {status} {body.decode()}\n")
        return 1
    plan = json.loads(body)
    blobs = BlobClient(os.environ["MODAL_SERVER_URL"], plan["server"]["token"])
    teller = _Teller(client, path)
    try:
        Build(plan, teller.say, blobs.get).run()
    except ImageBuildError as error:
        teller.end({"end": str(error)})
        return 1
    except BaseException as error:
        teller.end({"end": f"the image builder failed: {error!r}"})
        raise
    teller.end({"end": ""})
    return 0


if __name__ == "__main__":
    sys.exit(main())
