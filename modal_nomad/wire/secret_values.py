"""How the fields of Secrets become the environment variables of a container."""

import json
from typing import Any, Callable, Collection, Dict, Iterable, Mapping

# What a container is told by us, which nobody's Secret may take the place of.
RESERVED = frozenset(
    {
        "MODAL_BLOCK_NETWORK",
        "MODAL_CODE_DIR",
        "MODAL_CPU_LIMIT",
        "MODAL_DISK_LIMIT",
        "MODAL_ENVIRONMENT",
        "MODAL_I6PN",
        "MODAL_IMAGE",
        "MODAL_IMAGE_ID",
        "MODAL_IS_REMOTE",
        "MODAL_KILL_TIMEOUT",
        "MODAL_MEMORY_LIMIT",
        "MODAL_RUNTIME_DIR",
        "MODAL_SECRETS_FILE",
        "MODAL_SECRET_LEASES",
        "MODAL_SERVER_URL",
        "MODAL_SNAPSHOT",
        "MODAL_TASK_ID",
        "MODAL_WEB_RELAY",
        "MODAL_WORKER_TOKEN",
        "MODAL_WORKER_TOKEN_FILE",
    }
)


def is_variable(name: str) -> bool:
    """Say whether a process can have an environment variable of that name."""
    return bool(name) and "=" not in name and "\0" not in name


def merge(
    secrets: Iterable[Mapping[str, Any]],
    keep: Collection[str],
    complain: Callable[[str], None] = lambda line: None,
) -> Dict[str, str]:
    """Return the variables of Secrets, the later ones winning.

    Args:
        secrets: of each the ``values`` by field and, where not all are taken by their own names, the
            ``keys``: variable to field; a ``prefix`` goes before the variables' names.
        keep: variables that stay as they are: the user set them on the Function itself.
        complain: told, in one line without values, of each that cannot be set.
    """
    found: Dict[str, str] = {}
    for secret in secrets:
        values = plain(secret.get("values") or {})
        keys = secret.get("keys") or {name: name for name in values}
        for own, field in keys.items():
            name = secret.get("prefix", "") + own
            if field not in values:
                complain("a Secret has no field %r, so the variable %r is not set" % (field, name))
            elif not is_variable(name):
                complain("a Secret's field %r cannot be a variable: it is left out" % name)
            elif name in RESERVED:
                complain("the variable %r is the container's own: a Secret's is left out" % name)
            else:
                value = values[field]
                text = value if isinstance(value, str) else json.dumps(value)
                if "\0" in text:
                    complain("a Secret's value of %r has a zero byte, which no variable can have" % name)
                else:
                    found[name] = text
    for name in keep:
        found.pop(name, None)
    return found


def plain(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of what was read in Vault; its KV version 2 wraps them once more."""
    if set(values) == {"data", "metadata"} and isinstance(values["data"], dict):
        return values["data"]
    return values
