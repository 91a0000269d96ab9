"""Sets the variables of the container's Secrets, from the file that Nomad rendered for it alone."""

import json
import os
import sys
from typing import Any, Dict, List, MutableMapping

from modal_nomad.wire.secret_values import merge

VARIABLE = "MODAL_SECRETS_FILE"
LEASES = "MODAL_SECRET_LEASES"


def take(environ: MutableMapping[str, str]) -> None:
    """Add the Secrets' variables to ``environ``; nothing happens in a container that has no such file.

    Raises:
        ValueError: the file is not what the job's template renders.
    """
    path = environ.pop(VARIABLE, None)
    if not path:
        return
    with open(path, encoding="utf-8") as file:
        rendered = json.load(file)
    environ.update(merge(rendered["secrets"], rendered["keep"], _say))
    leases = _leases(rendered)
    if leases:
        environ[LEASES] = json.dumps({"file": path, "leases": leases})


def replaced(path: str, leases: List[str]) -> bool:
    """Say whether Nomad has rendered the file anew, with other leases: the ones taken are near their end."""
    try:
        with open(path, encoding="utf-8") as file:
            return _leases(json.load(file)) != leases
    except (OSError, ValueError):
        # Half written, or gone with its task.
        return False


def _leases(rendered: Dict[str, Any]) -> List[str]:
    return [secret["lease"] for secret in rendered["secrets"] if secret.get("lease")]


def take_own() -> None:
    """Add them to this process's environment, before any user code runs in it."""
    take(os.environ)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
