"""Runs a build command that sees an image's copied files: ``python -I -S _with_files.py PLAN``.

The plan is a JSON object: ``files`` (path, SHA-256, mode; the contents lie beside the plan under their
hashes), ``keep`` (directories that stay the node's own), ``command``.
"""

import json
import os
import sys
from typing import Dict, Sequence


def main(plan_path: str) -> int:
    """Place the files for this process alone, then become the command."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from modal_nomad.exception import ExecutionError
    from modal_nomad.wire.spec import MountedFile
    from modal_nomad.worker.files import place

    with open(plan_path, encoding="utf-8") as file:
        plan = json.load(file)
    folder = os.path.dirname(plan_path)

    def fetch(blobs: Sequence[str]) -> Dict[str, bytes]:
        found = {}
        for blob in blobs:
            with open(os.path.join(folder, blob), "rb") as content:
                found[blob] = content.read()
        return found

    try:
        place([MountedFile(*entry) for entry in plan["files"]], fetch, keep=plan["keep"])
    except ExecutionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    os.execv(plan["command"][0], plan["command"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
