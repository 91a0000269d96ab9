"""``modal.enable_output()`` around a run in a program of one's own."""

from __future__ import annotations

from conftest import Live

SCRIPT = """
    import contextlib
    import sys

    import modal_nomad as modal

    app = modal.App("output")

    @app.function()
    def work(x):
        print("working on", x)
        print("warning of", x, file=sys.stderr)
        return x

    if __name__ == "__main__":
        how = sys.argv[1]
        output = modal.enable_output(how == "progress") if how != "none" else contextlib.nullcontext()
        with output, app.run():
            print("sum", sum(work.map(range(3))))
"""
LOGS = [f"work | working on {x}" for x in range(3)]


def test_progress_and_logs(live: Live) -> None:
    done = live._finish(live.start(str(live.write("job.py", SCRIPT)), "progress"))
    lines = done.stdout.splitlines()
    assert lines[0] == "Created function work." and "work: 3 of 3 inputs done." in lines
    assert sorted(line for line in lines if line in LOGS) == LOGS and "sum 3" in lines
    assert sorted(done.stderr.splitlines()) == [f"work | warning of {x}" for x in range(3)]


def test_logs_alone(live: Live) -> None:
    done = live._finish(live.start(str(live.write("job.py", SCRIPT)), "logs"))
    assert sorted(done.stdout.splitlines()) == ["sum 3", *LOGS]


def test_without_it_a_run_is_silent(live: Live) -> None:
    done = live._finish(live.start(str(live.write("job.py", SCRIPT)), "none"))
    assert (done.stdout, done.stderr) == ("sum 3\n", "")
