"""A host volume without a Nomad: a directory of the embedded dispatcher's home, shared at once."""

from __future__ import annotations

from conftest import Live

import modal_nomad as modal

PROGRAM = """
import os
import modal_nomad as modal

data = modal.Volume.from_name("files", backend="host")
app = modal.App("host-volumes")

@app.function(timeout=100, single_use_containers=True, volumes={"/mn-files": data})
def write(name):
    with open("/mn-files/" + name, "w") as file:
        file.write(name)
    data.commit()
    return sorted(os.listdir("/mn-files"))

@app.function(timeout=100, volumes={"/mn-files": data.read_only()})
def read(name):
    data.reload()
    try:
        open("/mn-files/other", "w")
    except OSError as error:
        return [open("/mn-files/" + name).read(), error.strerror]

if __name__ == "__main__":
    with app.run():
        print(write.remote("a"), write.remote("b"), read.remote("b"))
"""

CSI = """
import modal_nomad as modal

app = modal.App("csi", volumes={"/mn-files": modal.Volume.from_name("disk", backend="csi")})

@app.function()
def never():
    pass

if __name__ == "__main__":
    with app.run():
        pass
"""


def test_containers_share_it(live: Live) -> None:
    (live.home / "host-volumes").mkdir(exist_ok=True)
    out = live.python(live.write("program.py", PROGRAM))
    assert out == "['a'] ['a', 'b'] ['b', 'Read-only file system']\n"
    assert (live.home / "host-volumes" / "files" / "a").read_text() == "a"


def test_a_csi_volume_is_refused_before_anything_starts(live: Live) -> None:
    with live.start(str(live.write("csi.py", CSI))) as process:
        _, err = process.communicate(timeout=100)
    assert "csi volume 'disk' needs Nomad" in err.strip().splitlines()[-1]


def test_nothing_of_it_is_asked_of_the_dispatcher(live: Live) -> None:
    volume = modal.Volume.from_name("files", backend="host").hydrate()
    assert not volume.is_hydrated
