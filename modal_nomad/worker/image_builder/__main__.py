"""The program: a plan comes in, what happens goes out.

The plan is one line. When the input ends after it, whoever wanted the images is gone: the build ends, and
leaves nothing running.
"""

import json
import os
import signal
import sys
import threading
from typing import Any, Dict

from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.transport import BlobClient
from modal_nomad.worker.image_builder.build import Build


def _say(event: Dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _ends(number: int, frame: Any) -> None:
    # Only once: what removes the remains must not be interrupted itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _watch(descriptor: int) -> None:
    while os.read(descriptor, 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Carry out the plan on the standard input; returns the exit code."""
    plan = json.loads(sys.stdin.buffer.readline())
    signal.signal(signal.SIGTERM, _ends)
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()
    blobs = BlobClient(plan["server"]["url"], plan["server"]["token"])
    try:
        Build(plan, _say, blobs.get).run()
    except ImageBuildError as error:
        _say({"error": str(error)})
        return 1
    except BrokenPipeError:
        # Whoever wanted it is gone.
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
