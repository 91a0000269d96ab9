"""Ends the containers of an engine that is gone, however it went.

Run as ``python -I -S _leash.py SOCKET LABEL [COMMAND...]``: it waits for the end of its standard input,
removes the containers with that label, and ends the command, which is what serves the socket where nothing
else does. Standard library only.
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
import urllib.parse
from typing import Any

_PATIENCE = 60.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(path: str, method: str, target: str) -> Any:
    connection = _Connection(path)
    try:
        connection.request(method, "/v1.40" + target)
        body = connection.getresponse().read()
    finally:
        connection.close()
    return json.loads(body) if body.strip() else None


def clear(path: str, label: str) -> None:
    """Remove the containers that have a label, those that run as well."""
    filters = urllib.parse.quote(json.dumps({"label": [label]}))
    for container in _ask(path, "GET", "/containers/json?all=true&filters=" + filters) or ():
        _ask(path, "DELETE", "/containers/" + container["Id"] + "?force=true&v=true")


def main(argv: list[str]) -> int:
    """Wait, then clear."""
    path, label, command = argv[1], argv[2], argv[3:]
    served = subprocess.Popen(command, stdin=subprocess.DEVNULL) if command else None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever ends a whole session or service ends the engine as well: then this is at its work.
        signal.signal(number, signal.SIG_IGN)
    try:
        while sys.stdin.buffer.read(1 << 16):
            pass
        clear(path, label)
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.stderr.write(f"containers are left behind: {error}\n")
        return 1
    finally:
        if served is not None:
            served.terminate()
            served.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
