"""Classes that a script defines: one and the same on both sides, however the script is started."""

from __future__ import annotations

from textwrap import dedent

from conftest import Live

SCRIPT = """
    import collections
    import enum
    from dataclasses import dataclass

    import modal_nomad as modal

    app = modal.App("classes")

    @dataclass
    class Point:
        x: int

        class Error(Exception):
            pass

    class Color(enum.Enum):
        RED = 1

    Pair = collections.namedtuple("Pair", "a b")
    @app.function()
    def see(point, color, pair, callback):
        assert isinstance(point, Point) and isinstance(pair["pair"], Pair)
        assert color is Color.RED
        assert isinstance(callback(), Point)
        return [Point(point.x + 1), color, {"pair": pair["pair"]}]

    @app.function()
    def fail(error):
        assert isinstance(error, Point.Error)
        raise Point.Error("from", "there") from error

    @app.function(serialized=True)
    def pickled(point):
        assert isinstance(point, Point)
        return Point(point.x + 1)

    @app.function()
    def kind(value):
        return type(value).__qualname__, value.x

    def check(see=see, fail=fail):
        def local():
            return Point(7)

        rest = Color.RED, {"pair": Pair(1, 2)}, local
        point, color, pair = see.remote(Point(1), *rest)
        assert type(point) is Point and point == Point(2)
        assert color is Color.RED and type(pair["pair"]) is Pair
        assert [p[0].x for p in see.starmap([(Point(i), *rest) for i in range(3)])] == [1, 2, 3]
        assert type(see.spawn(Point(1), *rest).get()[0]) is Point
        try:
            fail.remote(Point.Error("here"))
        except Point.Error as error:
            assert error.args == ("from", "there") and type(error.__cause__) is Point.Error
        else:
            raise AssertionError("no error")

    @app.local_entrypoint()
    def main():
        check()
        assert type(pickled.remote(Point(1))) is Point
        print("the same")
"""
STARTED = """
    import threading

    lock = threading.Lock()

    class Locked:
        x = 4

        def enter(self):
            with lock:
                return self.x

    if __name__ == "__main__":
        class Guarded:
            x = 5

        with app.run():
            main()
            assert kind.remote(Guarded()) == ("Guarded", 5)
            assert kind.remote(Locked()) == ("Locked", 4)
"""


def test_a_script(live: Live) -> None:
    assert live.python(live.write("job.py", SCRIPT + STARTED)) == "the same\n"


def test_a_module_run_with_m(live: Live) -> None:
    (live.folder / "pkg").mkdir()
    live.write("pkg/__init__.py", "")
    live.write("pkg/job.py", SCRIPT + STARTED)
    done = live._finish(live.start("-m", "pkg.job"))
    assert done.stdout == "the same\n", done.stderr


def test_the_command_line(live: Live) -> None:
    done = live.cli("run", "-q", str(live.write("job.py", SCRIPT)))
    assert done.stdout == "the same\n", done.stderr


def test_a_deployed_function_found_by_name_from_its_own_script(live: Live) -> None:
    started = """
    if __name__ == "__main__":
        app.deploy()
        check(*(modal.Function.from_name("classes", name) for name in ("see", "fail")))
        print("done")
    """
    script = live.write("job.py", SCRIPT + started)
    assert live.python(script) == "done\n"
    # In a script that decorates nothing, nobody has looked at the module before.
    other = dedent(SCRIPT).replace("@app.function()\n", "").replace("@app.function(serialized=True)\n", "")
    (live.folder / "other").mkdir()
    script = live.write("other/job.py", other + dedent(started).replace("app.deploy()", "pass"))
    assert live.python(script) == "done\n"
    assert live.cli("app", "stop", "classes").returncode == 0


def test_a_container_without_the_script_gets_a_copy(live: Live) -> None:
    live.write(
        "library.py",
        """
        import modal_nomad as modal

        app = modal.App()

        @app.function()
        def same(value):
            import sys

            assert "job" not in sys.modules
            return value, value.double()
        """,
    )
    script = live.write(
        "job.py",
        """
        from library import app, same

        class Number:
            def __init__(self, x):
                self.x = x

            def double(self):
                return 2 * self.x

        print("once")
        with app.run():
            value, double = same.remote(Number(4))
            print(type(value) is Number, value.x, double)
        """,
    )
    assert live.python(script) == "once\nTrue 4 8\n"


def test_a_spawned_process_of_a_script(live: Live) -> None:
    script = live.write(
        "job.py",
        SCRIPT
        + """
    def work():
        with app.run():
            check()
            print("the same")

    if __name__ == "__main__":
        import multiprocessing

        process = multiprocessing.get_context("spawn").Process(target=work)
        process.start()
        process.join()
        raise SystemExit(process.exitcode)
    """,
    )
    assert live.python(script) == "the same\n"


def test_a_session_without_a_file(live: Live) -> None:
    done = live._finish(live.start("-c", dedent(SCRIPT) + "\nwith app.run():\n    main()\n"))
    assert done.stdout == "the same\n", done.stderr


SESSION = """
    import modal

    app = modal.App("session")
    shared = modal.Dict.from_name("session", create_if_missing=True)

    @app.function()
    def double(x):
        return 2 * x

    @app.function()
    def factorial(n):
        return 1 if n < 2 else n * factorial.remote(n - 1)

    @app.function()
    def count(upto):
        yield from range(upto)

    @app.cls()
    class Model:
        size: int = modal.parameter(default=1)

        @modal.method()
        def grow(self, x):
            return double.remote(x) + self.size

    @app.function()
    def everything(x):
        shared["x"] = x
        grown = [Model(size=10).grow.remote(x), Model.with_options(cpu=0.5)().grow.remote(x)]
        return [double.remote(x), double.local(x), *double.map([x, 1]), *count.remote_gen(2), *grown]

    for _ in range(2):
        with app.run():
            print(everything.remote(3), factorial.remote(4), shared["x"])
"""


def test_functions_of_a_session_call_each_other(live: Live) -> None:
    """They go pickled, before any of them has an id; so do those that come back to themselves."""
    done = live._finish(live.start("-c", dedent(SESSION)))
    assert done.stdout == "[6, 6, 6, 2, 0, 1, 16, 7] 24 3\n" * 2, done.stderr
