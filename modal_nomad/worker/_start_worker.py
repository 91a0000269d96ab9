"""Starts a container: the first thing a node runs, by its bare ``python3``, from the runtime bundle.

Until the right interpreter runs this, only the standard library is safe to use, and this file must
parse on any Python 3 so that an old one can be named in words.
"""

import os
import sys

MINIMUM = (3, 9)
_BUILT = "_MODAL_ENVIRONMENT_PYTHON"
_TRIED = "_MODAL_TRIED_PYTHON"


def _paths():
    # type: () -> tuple[str | None, str]
    here = os.path.dirname(os.path.abspath(__file__))
    runtime = os.path.abspath(os.environ.get("MODAL_RUNTIME_DIR") or here)
    code = os.environ.get("MODAL_CODE_DIR")
    return (os.path.abspath(code) if code else None), runtime


def _arrange_path(with_code):
    # type: (bool) -> None
    """Put the user's code first and our runtime last: whatever the image has wins over ours."""
    code, runtime = _paths()
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [p for p in sys.path if p and os.path.abspath(p) not in (here, code, runtime)]
    sys.path[:] = ([code] if code and with_code else []) + rest + [runtime]


def _environments_dir():
    # type: () -> str
    named = os.environ.get("MODAL_ENVIRONMENTS_DIR")
    if named:
        return named
    shared = "/var/cache"
    if os.access(shared, os.W_OK):
        base = shared
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "modal-nomad", "environments")


def _enter_image():
    # type: () -> None
    """Continue in the image's own interpreter when that is not the one running."""
    if os.environ.get(_BUILT):
        return
    in_container = bool(os.environ.get("MODAL_CONTAINER_RUNTIME"))
    if "MODAL_IMAGE" not in os.environ and (in_container or (sys.flags.isolated and sys.flags.no_site)):
        # As it was started it is the image's interpreter: a second one would only cost its start.
        return
    import json

    image = json.loads(os.environ.get("MODAL_IMAGE") or "{}")
    from modal_nomad.worker.environment import interpreter_command, needs_build

    if in_container and not needs_build(image):
        return
    command = interpreter_command(image, _environments_dir(), log=_say, fetch=_fetch)
    _leave_network()
    os.environ[_BUILT] = command[0]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], [*command, os.path.abspath(__file__), *sys.argv[1:]])


def _leave_network():
    # type: () -> None
    """Leave the network once all is there that comes over it: the image's own start-up code runs without."""
    if os.environ.get("MODAL_BLOCK_NETWORK"):
        from modal_nomad.worker import leave_network

        if not leave_network():
            sys.exit(1)


def _from_snapshot():
    # type: () -> int | None
    """Be a fork of this Function's memory snapshot on this node, where there is one."""
    name = os.environ.get("MODAL_SNAPSHOT", "")
    if not name or "$" in name:
        os.environ.pop("MODAL_SNAPSHOT", None)
        return None
    if os.sep not in name:
        folder = os.path.join(os.path.dirname(_environments_dir()), "snapshots-%d" % os.geteuid())
        os.environ["MODAL_SNAPSHOT"] = os.path.join(folder, name)
    if os.environ.get(_BUILT):
        # Asked before, in the node's interpreter.
        return None
    # By its file alone: importing the package would take longer than the fork.
    here = os.path.join(_paths()[1], "modal_nomad", "worker")
    sys.path.insert(0, here)
    try:
        from _stand_in import restore  # type: ignore[import-not-found]
    finally:
        sys.path.remove(here)
    code = restore(os.environ["MODAL_SNAPSHOT"])  # type: int | None
    return code


def _fetch(sha):
    # type: (str) -> bytes
    from modal_nomad.worker._session import Settings

    return Settings(os.environ).blobs().get(sha)


def _say(line):
    # type: (str) -> None
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _newer():
    # type: () -> str | None
    """Return a Python of a container image that is new enough, where the first one found is not."""
    if not os.environ.get("MODAL_CONTAINER_RUNTIME") or os.environ.get(_TRIED):
        return None
    folders = (os.environ.get("PATH") or os.defpath).split(os.pathsep)
    folders += ["/usr/local/bin", "/usr/bin", "/opt/conda/bin"]
    for minor in range(20, MINIMUM[1] - 1, -1):
        for folder in folders:
            path = os.path.join(folder, "python3.%d" % minor)
            if os.access(path, os.X_OK):
                return path
    return None


def start():
    # type: () -> int
    if sys.version_info < MINIMUM:
        newer = _newer()
        if newer is not None:
            os.environ[_TRIED] = "1"
            os.execv(newer, [newer, *sys.argv])
        version = (sys.executable, sys.version_info[0], sys.version_info[1])
        if os.environ.get("MODAL_CONTAINER_RUNTIME"):
            _say(
                "modal-nomad containers need Python 3.9 or newer, and %s of this image is %d.%d: add a newer "
                "one to the image, or name it with Image.env({'MODAL_PYTHON': ...})" % version
            )
            # As the start line says that there is none at all.
            return 127
        else:
            _say(
                "modal-nomad containers need Python 3.9 or newer, and %s is %d.%d: install a newer python3 "
                "on this node, or name one in the dispatcher's settings" % version
            )
        return 1
    os.environ.pop(_TRIED, None)
    # The user's modules come in only once the image's interpreter runs: they may be anything.
    _arrange_path(with_code=False)
    if "--launch" in sys.argv:
        from modal_nomad.worker.launch import main as launch

        return launch()
    code = _from_snapshot()
    if code is not None:
        return code
    try:
        _enter_image()
    except Exception as exc:
        _say("cannot set up the container's Python environment: %s" % exc)
        from modal_nomad.exception import ImageBuildError
        from modal_nomad.worker import report

        report(ImageBuildError(str(exc), os.environ.get("MODAL_IMAGE_ID", "")))
        return 1
    # Not for the user's own subprocesses.
    os.environ.pop(_BUILT, None)
    if os.environ.get("MODAL_SECRETS_FILE"):
        from modal_nomad.worker._secrets import take_own

        take_own()
    _arrange_path(with_code=True)
    from modal_nomad.worker import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
