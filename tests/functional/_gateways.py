"""Gateways as processes of their own, for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import alive, until

TOKEN = "token-of-the-tests"
_LISTENING = re.compile(r"served at (https?)://127\.0\.0\.1:(\d+)")


@dataclass
class Gateways:
    """Starts gateways for one dispatcher.

    Attributes:
        folder: for their files.
        dispatcher: its address.
    """

    folder: Path
    dispatcher: str
    started: list[Running] = field(default_factory=list)

    def start(self, wait: str = "connected with", tables: str = "", **settings: Any) -> Running:
        """Start one; returns when its log says that it listens, and ``wait``."""
        given = {
            "listen": "http://127.0.0.1:0",
            "dispatchers": [self.dispatcher],
            "gateway_token": TOKEN,
            **settings,
        }
        name = f"gateway-{len(self.started)}"
        file, out = self.folder / f"{name}.toml", self.folder / f"{name}.log"
        file.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in given.items()) + f"\n{tables}\n")
        with open(out, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "modal_nomad", "gateway", "--config", str(file)],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        running = Running(process, out)
        self.started.append(running)

        def ready() -> Any:
            assert process.poll() is None, out.read_text()
            text = out.read_text()
            return wait in text and _LISTENING.search(text)

        found = until(ready, what=f"the start of {name}")
        running.port = int(found.group(2))
        return running

    def close(self) -> None:
        for running in self.started:
            running.end()


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def url(self, label: str) -> str:
        return f"http://127.0.0.1:{self.port}/{label}"

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def end(self) -> None:
        """Have it end as it is meant to."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(100)

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(x) for x in text.split() if alive(int(x))]


@contextmanager
def gateways(folder: Path, dispatcher: str) -> Iterator[Gateways]:
    made = Gateways(folder, dispatcher)
    try:
        yield made
    finally:
        made.close()


Serve = Callable[..., "subprocess.Popen[str]"]
