"""Runs a function inside an image that is being built, by the image's own Python.

The one argument is a folder: ``function.json``, the function's specification, its ``timeout``, its code's
place and its Volumes; ``arguments`` and, for one that travels itself, its pickle under its hash. The
dispatcher is reached as from any container.
"""

import inspect
import json
import os
import signal
import sys
import traceback
from typing import Any, List, Mapping, Sequence


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
    prepare(spec, told["code"] or None, runtime)
    try:
        trees = _filled(told.get("volumes") or ())
    except Exception as error:
        sys.stderr.write(f"cannot fill the Volumes of {spec.name}: {error}\n")
        return 1

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
        # Also what it left when it failed, as any container does.
        kept = _committed(trees)
        sys.stdout.flush()
    return 0 if kept else 1


def _filled(wanted: Sequence[Mapping[str, Any]]) -> List[Any]:
    """Put the Volumes' files in place. Raises OSError, Refused."""
    if not wanted:
        return []
    from modal_nomad.wire.volumes.below import client_of
    from modal_nomad.wire.volumes.mounted import mounts
    from modal_nomad.worker._volume_tree import VolumeTree

    with open(os.environ["MODAL_WORKER_TOKEN_FILE"]) as file:
        token = file.read().strip()
    trees = []
    for volume in wanted:
        client = client_of(os.environ["MODAL_SERVER_URL"], token, str(volume.get("sub_path") or ""))
        tree = VolumeTree(
            volume["folder"],
            volume["path"],
            volume["volume_id"],
            client,
            client.get_chunk,
            bool(volume.get("read_only")),
        )
        tree.fill()
        mounts.add(tree.volume_id, tree)
        trees.append(tree)
    return trees


def _committed(trees: Sequence[Any]) -> bool:
    done = True
    for tree in trees:
        if tree.read_only:
            continue
        try:
            tree.commit()
        except Exception as error:
            sys.stderr.write(f"cannot commit {tree.shown}: {error}\n")
            done = False
    return done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
