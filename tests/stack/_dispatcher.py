"""A real dispatcher process in front of a real Nomad, and the command line against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests._ports import free_ports
from tests.engine_contract._nomad_agent import wait_until

FILE = """
import os
import modal

app = modal.App("stack")

@app.function(scaledown_window=20)
def where(x: int) -> str:
    return f"{x} in {os.environ['NOMAD_ALLOC_ID']}"

@app.function(memory=10_000_000)
def huge(x: int) -> int:
    return x

@app.local_entrypoint()
def main(count: int = 1):
    for line in where.map(range(count)):
        print(line)
"""


@contextmanager
def dispatcher(
    directory: Path,
    nomad: Mapping[str, str],
    *,
    env: Mapping[str, str] = {},
    render: Mapping[str, str] = {},
    vault: Mapping[str, str] = {},
    s3: Mapping[str, Any] = {},
    nfs: Mapping[str, str] = {},
    namespaces: Mapping[str, str] = {},
    web: Mapping[str, Any] = {},
    proxies: Mapping[str, str] = {},
    tunnels: Mapping[str, Any] = {},
    images: Mapping[str, Any] = {},
    **settings: Any,
) -> Iterator[str]:
    """Yield the URL of a dispatcher on ``nomad``, the settings of its table of that name; so the others."""
    (port,) = free_ports(1)
    url = settings.pop("listen", "http://127.0.0.1:{port}").format(port=port)
    config = {"listen": url, "home": str(directory / "home"), "engine": "nomad", **settings}
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]
    lines += ["[nomad]", *(f"{name} = {json.dumps(value)}" for name, value in nomad.items())]
    lines += ["[vault]", *(f"{name} = {json.dumps(value)}" for name, value in vault.items())]
    lines += ["[s3]", *(f"{name} = {json.dumps(value)}" for name, value in s3.items())]
    lines += ["[namespaces]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in namespaces.items())]
    lines += ["[nfs]", *(f"{name} = {json.dumps(value)}" for name, value in nfs.items())]
    lines += ["[web]", *(f"{name} = {json.dumps(value)}" for name, value in web.items())]
    lines += [f"[proxies.{name}]\n{text}" for name, text in proxies.items()]
    lines += ["[tunnels]", *(f"{name} = {json.dumps(value)}" for name, value in tunnels.items())]
    lines += ["[images]", *(f"{name} = {json.dumps(value)}" for name, value in images.items())]
    lines += ["[render]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in {"python": sys.executable, **render}.items()]
    file, out = directory / "dispatcher.toml", directory / "dispatcher.log"
    file.write_text("\n".join(lines))
    command = [sys.executable, "-m", "modal_nomad", "dispatcher", "--config", str(file)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_", "VAULT_"))}
    with open(out, "wb") as log:
        process = subprocess.Popen(command, env={**clean, **env}, stdout=log, stderr=log)
        try:
            wait_until(lambda: b"listening on" in out.read_bytes(), process, out)
            yield url
        finally:
            process.terminate()
            process.wait(100)


def modal_nomad(
    directory: Path, url: str, *words: str, file: str = FILE, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line against a dispatcher, in a folder that has ``app.py``."""
    (directory / "app.py").write_text(file)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "MODAL_"))}
    return subprocess.run(
        [sys.executable, "-m", "modal_nomad", *words],
        cwd=directory,
        env={**clean, "MODAL_CONFIG_PATH": "/nonexistent", "MODAL_SERVER_URL": url, **env},
        capture_output=True,
        text=True,
        timeout=250,
    )


def put(address: str, path: str, body: Mapping[str, Any], token: str = "") -> Any:
    """Say something to Nomad's API."""
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), headers={"X-Nomad-Token": token}, method="PUT"
    )
    with urllib.request.urlopen(request, timeout=100) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def get(address: str, path: str, token: str = "") -> Any:
    """Ask Nomad's API."""
    request = urllib.request.Request(address + path, headers={"X-Nomad-Token": token})
    with urllib.request.urlopen(request, timeout=100) as answer:
        return json.load(answer)
