"""Runs a function inside an image that is being built, by the image's own Python.

The one argument is a folder: ``function.json``, the function's specification, its ``timeout`` and its code's
place; ``arguments`` and, for one that travels itself, its pickle under its hash.
"""

import inspect
import json
import os
import signal
import sys
import traceback
from typing import Any


def main(folder: str) -> int:
    """Run the function; returns the exit code."""
    here = os.path.dirname(os.path.abspath(__file__))
    runtime = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    sys.path.append(runtime)
    with open(os.path.join(folder, "function.json")) as file:
        told = json.load(file)
    from modal_nomad.wire.serialization import loads
    from modal_nomad.wire.spec import FunctionSpec
    from modal_nomad.worker._loader import load_function, prepare

    def fetch(sha: str) -> bytes:
        with open(os.path.join(folder, sha), "rb") as file:
            return file.read()

    spec = FunctionSpec.from_dict(told["function"])
    os.environ["MODAL_IS_REMOTE"] = "1"
    prepare(spec, told["code"] or None, runtime)

    def over(number: int, frame: Any) -> None:
        raise TimeoutError(f"{spec.name} ran longer than its timeout of {told['timeout']:g} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, told["timeout"])
    try:
        function = load_function(spec, told["code"] or None, fetch)
        args, kwargs = loads(fetch("arguments"))
        result = function(*args, **kwargs)
        if inspect.iscoroutine(result):
            import asyncio

            asyncio.run(result)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
