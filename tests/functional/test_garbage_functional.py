"""Old deploys leave nothing behind, and what is in use survives the broom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import Live, age, until

import modal_nomad as modal

APP = """
    import modal_nomad as modal

    app = modal.App("swept")

    @app.function(scaledown_window=1)
    def f(data):
        return {word!r}, len(data)

    if __name__ == "__main__":
        app.deploy()
"""


def test_code_of_old_deploys_and_dropped_values_are_removed(own: Live, serve: Callable[..., Any]) -> None:
    serve(garbage_age=3600.0, garbage_interval=0.5)
    state = own.home / "state"

    def blobs() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (state / "blobs").glob("??/??/*")}

    def bundles() -> set[str]:
        return {path.name for path in (state / "code").iterdir()}

    large = b"x" * (3 << 20)
    runtime = set(blobs())
    own.python(own.write("app.py", APP.format(word="first")))
    call = modal.Function.from_name("swept", "f").spawn(large)
    # Before it is of no use any more.
    values = {sha for sha, size in blobs().items() if size > len(large)}
    assert call.get(timeout=100) == ("first", len(large))
    old_bundles = bundles()
    of_the_first = old_bundles | values
    assert len(of_the_first) == 2

    own.python(own.write("app.py", APP.format(word="second")))
    assert modal.Function.from_name("swept", "f").remote(b"") == ("second", 0)
    age(state)
    until(lambda: not of_the_first & set(blobs()), what="the end of the first deploy's blobs")
    until(lambda: not old_bundles & bundles(), what="the end of the first deploy's code")
    assert runtime < set(blobs()), "the runtime and the code in use were removed"
    # A container that starts now still finds its code.
    until(lambda: not own.status()["containers"], what="the end of the idle container")
    assert modal.Function.from_name("swept", "f").remote(b"ab") == ("second", 2)
