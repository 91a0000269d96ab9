"""An App whose Functions run in container images, for the embedded dispatcher and for Nomad's driver."""

from __future__ import annotations

APP = """
import os
import sys
import urllib.request
from pathlib import Path

import modal_nomad as modal

HERE = Path(__file__).parent
app = modal.App("boxed")
base = modal.Image.from_registry({image!r})
image = (
    base.env({{"OF_IMAGE": "yes"}})
    .workdir("/srv/work")
    .add_local_file(HERE / "data.txt", "/data/added.txt")
)
volume = modal.Volume.from_name("boxed", create_if_missing=True)
words = modal.Dict.from_name("boxed", create_if_missing=True)
secret = modal.Secret.from_dict({{"PASSWORD": "swordfish"}})

def cgroup(*names):
    for name in names:
        path = Path("/sys/fs/cgroup", name)
        if path.exists():
            return path.read_text().split()

@app.function(image=image, secrets=[secret], memory=(128, 300), cpu=(0.1, 0.5))
def look():
    shown = Path("/proc/1/environ").read_bytes()
    return {{
        "image": os.environ["OF_IMAGE"],
        "cwd": os.getcwd(),
        "file": Path("/data/added.txt").read_text(),
        "code": __file__,
        "secret": os.environ["PASSWORD"],
        "shown": b"swordfish" in shown,
        "user": os.getuid(),
        "memory": cgroup("memory.max", "memory/memory.limit_in_bytes"),
        "cpu": cgroup("cpu.max", "cpu/cpu.cfs_quota_us"),
        "packages": any("site-packages" in x or "dist-packages" in x for x in sys.path),
    }}

@app.function(image=base, max_containers=2)
def square(x):
    words[str(x)] = x * x
    return x * x

@app.function(image=base)
def items(n):
    yield from range(n)

@app.cls(image=base)
class Counter:
    @modal.enter()
    def begin(self):
        self.n = 40

    @modal.method()
    def more(self, by):
        self.n += by
        return self.n

@app.function(image=base, volumes={{"/vol": volume}})
def keep(text):
    Path("/vol/kept.txt").write_text(text)
    volume.commit()
    return os.path.ismount("/vol")

@app.function(image=base)
@modal.wsgi_app()
def hello():
    def serve(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello from " + os.uname().sysname.encode()]

    return serve

if __name__ == "__main__":
    with app.run():
        print(look.remote())
        print(list(square.map(range(4))), words["3"])
        print(list(items.remote_gen(5)))
        print(Counter().more.remote(2))
        print(keep.remote("by a container"), b"".join(volume.read_file("kept.txt")))
        if hello.get_web_url():
            url = hello.get_web_url()
            print(urllib.request.urlopen(url, timeout=60).read())
"""


def seen(printed: str, *, served: bool = True) -> dict[str, object]:
    """Check what the App printed; returns what ``look`` saw."""
    import ast

    look, squares, items, counter, kept, *web = printed.splitlines()
    assert squares == "[0, 1, 4, 9] 9"
    assert items == "[0, 1, 2, 3, 4]"
    assert counter == "42"
    assert kept == "True b'by a container'"
    assert web == (["b'hello from Linux'"] if served else [])
    found: dict[str, object] = ast.literal_eval(look)
    told = {name: found.pop(name) for name in ("memory", "cpu", "shown")}
    assert found == {
        "image": "yes",
        "cwd": "/srv/work",
        "file": "of the caller",
        "code": "/local/code/app.py",
        "secret": "swordfish",
        "user": 0,
        "packages": True,
    }
    return told
