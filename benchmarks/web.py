"""Web endpoints: through gateways, through nginx, and the container asked directly, by wrk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import subject

CONNECTIONS = (1, 64, 512)
PROCESSES = max(2, min(4, os.cpu_count() or 2))
_PROGRAMS = ("wrk", "nginx")
_TOKEN = "token-of-the-benchmarks"
_LIMIT = 60.0
_HOST = "Host: bench-web.localhost"
_APP = """
import modal_nomad as modal

app = modal.App("bench")

@app.function(max_containers=1, scaledown_window=600)
@modal.concurrent(max_inputs=1000)
@modal.asgi_app()
def web():
    import os

    pid = b"%d" % os.getpid()
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(pid))]

    async def served(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": fields})
            await send({"type": "http.response.body", "body": pid})
    return served

@app.function(scaledown_window=1)
@modal.asgi_app()
def cold():
    async def served(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})
    return served
"""
_NGINX = """
daemon off;
worker_processes {processes};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream container {{ server 127.0.0.1:{port}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{listen} backlog=1024;
    location / {{
      proxy_pass http://container; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_buffering off;
    }}
  }}
}}
"""


def measure(seconds: float, rounds: int) -> subject.Results:
    """Measure all ways to the same container; nothing where a program is missing."""
    missing = [x for x in _PROGRAMS if shutil.which(x) is None]
    if missing:
        print(f"no {missing[0]}: it is not installed (Debian: apt-get install wrk nginx)", file=sys.stderr)
        return {}
    found: subject.Results = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-bench-")))
        url = f"unix://{folder}/d.sock"
        (inside,) = _ports(1)
        _dispatcher(stack, folder, inside)
        _deploy(folder, url)
        ways = {"one": _gateway(stack, folder, url, 1), "several": _gateway(stack, folder, url, PROCESSES)}
        container = _container_port(_wait(f"http://127.0.0.1:{inside}/bench-web/"))
        ways["direct"] = f"http://127.0.0.1:{container}/"
        ways["nginx"] = _nginx(stack, folder, container)
        for address in ways.values():
            _wait(address)
        for connections in CONNECTIONS:
            times: dict[str, list[tuple[float, float, float]]] = {}
            for _ in range(rounds):
                for name, address in ways.items():
                    times.setdefault(name, []).append(_wrk(address, connections, seconds))
            for name, taken in times.items():
                for what, values in zip(("rps", "p50_ms", "p99_ms"), zip(*taken, strict=True), strict=True):
                    found[f"{name}_{connections}_{what}"] = median(values)
        found["cold_ms"] = median(_cold(ways["one"].replace("bench-web", "bench-cold")) for _ in range(3))
    return found


def render(found: subject.Results) -> str:
    """Give the table; in brackets the share of the direct way's requests."""
    ways = {
        "direct": "container",
        "one": "1 gateway",
        "several": f"{PROCESSES} gateways",
        "nginx": "nginx",
    }
    if not found:
        return "web endpoints: not measured"
    lines = [f"{'':36}" + "".join(f"{x:>20}" for x in ways.values())]
    for connections in CONNECTIONS:
        for what, words in (("rps", "requests/s"), ("p50_ms", "p50"), ("p99_ms", "p99")):
            line = f"{f'{connections} connections: {words}':36}"
            for way in ways:
                value = found[f"{way}_{connections}_{what}"]
                cell = f"{value:,.2f} ms"
                if what == "rps":
                    cell = f"{value:,.0f} ({value / found[f'direct_{connections}_rps']:.0%})"
                line += f"{cell:>20}"
            lines.append(line)
    lines.append(f"{'first response from zero':36}{found['cold_ms']:>17,.0f} ms")
    return "\n".join(lines)


# --- what is measured -------------------------------------------------------------------------------


def _dispatcher(stack: contextlib.ExitStack, folder: Path, port: int) -> None:
    settings = {
        "listen": f"unix://{folder}/d.sock",
        "home": f"{folder}/home",
        "engine": "local",
        "auth": "none",
    }
    lines = [f"{k} = {json.dumps(v)}" for k, v in settings.items()]
    web = {"listen": f"http://127.0.0.1:{port}", "edge": True, "gateway_token": _TOKEN}
    lines += ["[web]", *(f"{k} = {json.dumps(v)}" for k, v in web.items())]
    (folder / "dispatcher.toml").write_text("\n".join(lines))
    _run(stack, folder, "listening on", "dispatcher", "--config", str(folder / "dispatcher.toml"))


def _gateway(stack: contextlib.ExitStack, folder: Path, url: str, processes: int) -> str:
    (port,) = _ports(1)
    file = folder / f"gateway-{processes}.toml"
    settings = {
        "listen": f"http://127.0.0.1:{port}",
        "dispatchers": [url],
        "gateway_token": _TOKEN,
        "processes": processes,
    }
    file.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in settings.items()))
    _run(stack, folder, "served at", "gateway", "--config", str(file))
    return f"http://127.0.0.1:{port}/bench-web/"


def _run(stack: contextlib.ExitStack, folder: Path, word: str, *command: str) -> None:
    log = folder / f"{command[0]}-{len(list(folder.iterdir()))}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "modal_nomad", *command], stdout=out, stderr=out, env=environment
        )
    stack.callback(_end, process)
    deadline = time.monotonic() + _LIMIT
    while word not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log.read_text())
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _deploy(folder: Path, url: str) -> None:
    (folder / "bench_app.py").write_text(_APP)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    subprocess.run(
        [sys.executable, "-m", "modal_nomad", "deploy", "bench_app.py"],
        cwd=folder,
        env={**clean, "MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": "/nonexistent"},
        check=True,
        capture_output=True,
    )


def _container_port(answer: bytes) -> int:
    """Return the port of the container, whose answer is the id of its process."""
    for port in _listening(Path("/proc", answer.decode())):
        return port
    raise RuntimeError("the container of the benchmark does not listen")


def _listening(process: Path) -> Iterator[int]:
    inodes = set()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            if found:
                inodes.add(found.group(1))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            yield int(fields[1].rpartition(":")[2], 16)


def _nginx(stack: contextlib.ExitStack, folder: Path, container: int) -> str:
    (port,) = _ports(1)
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(processes=PROCESSES, folder=folder, port=container, listen=port))
    process = subprocess.Popen(
        ["nginx", "-c", str(file), "-p", str(folder), "-e", str(folder / "error.log")],
        stderr=subprocess.DEVNULL,
    )
    stack.callback(_end, process)
    return f"http://127.0.0.1:{port}/"


def _wrk(url: str, connections: int, seconds: float) -> tuple[float, float, float]:
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-H", _HOST, url],
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout
    if "Non-2xx" in text:
        raise RuntimeError(f"{url} did not answer all requests well:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    return float(rate.group(1)), _time(text, "50%"), _time(text, "99%")


def _time(text: str, part: str) -> float:
    found = re.search(rf"{part}\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found.group(1)) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found.group(2)]


def _cold(url: str) -> float:
    time.sleep(3)
    begun = time.perf_counter()
    urllib.request.urlopen(url, timeout=_LIMIT).read()
    return (time.perf_counter() - begun) * 1000


def _wait(url: str) -> bytes:
    deadline = time.monotonic() + _LIMIT
    while True:
        try:
            with urllib.request.urlopen(url, timeout=_LIMIT) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found
