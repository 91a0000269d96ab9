"""This project's Volumes, embedded: through FUSE where it can be used, and filled before the start."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle

import modal_nomad as modal
from benchmarks.subjects import _volumes

WHERE = "/mn-bench"


def in_container(volume: modal.Volume) -> Callable[[str], float]:
    """Return what a container does, and says how long that took."""
    change, read_all, read_one, timed = (
        _volumes.change,
        _volumes.read_all,
        _volumes.read_one,
        _volumes.timed,
    )

    def run(what: str) -> float:
        if what == "commit":
            change(WHERE)
            return timed(volume.commit)
        return timed(lambda: (read_one if what == "one" else read_all)(WHERE))

    return run


def main(large_mib: int, small: int) -> None:
    """Measure."""
    found: dict[str, float] = {}
    # Containers have no benchmarks.
    cloudpickle.register_pickle_by_value(_volumes)
    with tempfile.TemporaryDirectory() as folder, modal.Volume.ephemeral() as volume:
        _volumes.make(Path(folder), large_mib, small)

        def upload() -> None:
            with volume.batch_upload() as batch:
                batch.put_directory(folder, "/")

        found["upload_ms"] = _volumes.timed(upload)
        app = modal.App("volume-bench", include_source=False)
        ways = (("", "1"), ("filled_", "0"))
        functions: dict[str, Any] = {
            way: app.function(
                serialized=True,
                name=f"way_{wish}",
                env={"MODAL_VOLUME_FUSE": wish},
                volumes={WHERE: volume},
                single_use_containers=True,
                timeout=600,
                startup_timeout=600,
            )(in_container(volume))
            for way, wish in ways
        }
        with app.run():
            for way, call in functions.items():
                # From the call to the answer: the container's start is what a reader waits for, too.
                found[f"{way}one_ms"] = _volumes.timed(lambda call=call: call.remote("one"))
                whole = _volumes.timed(lambda call=call: call.remote("all"))
                found[f"{way}all_ms"] = whole
                found[f"{way}commit_ms"] = call.remote("commit")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
