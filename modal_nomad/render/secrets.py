"""A Function's Secrets as a ``vault`` block and a ``template``: the allocation reads them by itself.

The template renders JSON, never ``env = true``: that breaks on values of several lines and kills the task
over a key that is no shell word. What stands in the job is where a Secret is, and nothing of what it holds.
"""

from __future__ import annotations

import json
from typing import Any

from modal_nomad.render.settings import RenderSettings
from modal_nomad.wire.mounts import SecretRef
from modal_nomad.wire.spec import FunctionSpec

SECRETS_FILE = "modal_secrets.json"


def reads_vault(spec: FunctionSpec, settings: RenderSettings) -> bool:
    """Say whether the allocation reads this Function's Secrets by itself."""
    return bool(spec.secret_refs and settings.vault_mount)


def vault_blocks(spec: FunctionSpec, settings: RenderSettings) -> dict[str, Any]:
    """Return the task's ``Vault`` and ``Templates``; nothing where it reads no Secrets itself."""
    if not reads_vault(spec, settings):
        return {}
    leased = any(ref.vault_path for ref in spec.secret_refs)
    return {
        "Vault": {
            "Role": settings.vault_role,
            "Namespace": settings.vault_namespace,
            "Cluster": "default",
            # User code has no use for the token that its Secrets were read with.
            "Env": False,
            "DisableFile": True,
            # A busy container is not ended because its token is new: its variables are what they are.
            "ChangeMode": "noop",
        },
        "Templates": [
            {
                "DestPath": f"secrets/{SECRETS_FILE}",
                "EmbeddedTmpl": _template(spec, settings),
                "ChangeMode": "noop",
                "Envvars": False,
                # What has a lease is read on, so that the lease is renewed while the container lives.
                "Once": not leased,
            }
        ],
    }


def _template(spec: FunctionSpec, settings: RenderSettings) -> str:
    entries = ",\n".join(_entry(ref, settings) for ref in spec.secret_refs)
    return f'{{"keep": {_literal(sorted(spec.env))}, "secrets": [\n{entries}\n]}}\n'


def _entry(ref: SecretRef, settings: RenderSettings) -> str:
    path, field = ref.vault_path, ".Data"
    if not path:
        path, field = f"{settings.vault_mount}/data/{kv_path(ref, settings)}", ".Data.data"
    # Its lease's id is no credential: with it the dispatcher ends the lease together with the container.
    lease = ', "lease": {{ .LeaseID | toJSON }}' if ref.vault_path else ""
    read = f"{{{{ with secret {_quoted(path)} }}}}{{{{ {field} | toJSON }}}}{lease}{{{{ end }}}}"
    prefix = f', "prefix": {_literal(ref.prefix)}' if ref.prefix else ""
    return f'{{"keys": {_literal(dict(ref.keys))}{prefix}, "values": {read}}}'


def kv_path(ref: SecretRef, settings: RenderSettings) -> str:
    """Return where a stored Secret stands below the mount."""
    folders = [settings.vault_prefix, ref.environment or settings.environment]
    return "/".join([*(x for x in folders if x), *(["ephemeral"] if ref.ephemeral else []), ref.name])


def _literal(value: Any) -> str:
    """Return JSON that the template engine passes through: no braces of its own can open in a name."""
    text = json.dumps(value)
    return text if "{{" not in text else text.replace("{{", "{\\u007b")


def _quoted(path: str) -> str:
    return json.dumps(path, ensure_ascii=True)
