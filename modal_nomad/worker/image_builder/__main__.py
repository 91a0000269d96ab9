"""The program: a plan comes in, what happens goes out."""

import json
import sys
from typing import Any, Dict

from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.transport import BlobClient
from modal_nomad.worker.image_builder.build import Build


def _say(event: Dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Carry out the plan on the standard input; returns the exit code."""
    plan = json.load(sys.stdin)
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
