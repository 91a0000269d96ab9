"""The Secrets of a build, from the file that Nomad's template rendered for its job alone."""

import json
from typing import Any, Callable, Dict, List, Optional

from ...exception import ImageBuildError
from ...wire.secret_values import merge

SECRETS = "MODAL_SECRETS_FILE"


def read_secrets(
    plan: Dict[str, Any], path: Optional[str], say: Callable[[Dict[str, Any]], None]
) -> List[str]:
    """Add to each layer of a plan the values of its Secrets, where the job reads these by itself.

    Args:
        plan: as the dispatcher gives it; changed.
        path: the rendered file.
        say: takes an event.

    Returns:
        The leases that were taken for it.

    Raises:
        ImageBuildError: the file is not what the job's template renders.
    """
    if not plan.get("secrets"):
        return []
    try:
        with open(path or "", encoding="utf-8") as file:
            rendered = json.load(file)
    except (OSError, ValueError) as error:
        raise ImageBuildError(
            f"the image builder's job did not render its Secrets ({error}): register"
            " jobspecs/image-builder.nomad.hcl of this version"
        ) from None
    if len(rendered) != len(plan["secrets"]):
        raise ImageBuildError(f"Vault has {len(rendered)} of the build's {len(plan['secrets'])} Secrets")

    def complain(line: str) -> None:
        say({"line": line})

    found = iter(rendered)
    for layer in plan["layers"]:
        used, pulled = layer["reads"]
        for name, reads in (("values", used), ("pull_values", pulled)):
            own = [{**read, "values": next(found)["values"]} for read in reads]
            layer[name] = merge(own, (), complain)
    return [secret["lease"] for secret in rendered if secret.get("lease")]
