"""Environments of images, built for real from a wheel made here: no network."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from modal_nomad.exception import ImageBuildError
from modal_nomad.wire.spec import ImageLayer, ImageSpec
from modal_nomad.worker import environment


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tinypkg-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinypkg-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinypkg.py", "VALUE = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def _image(wheels: Path, *packages: str, **options: Any) -> dict[str, Any]:
    options = {"find_links": str(wheels), "extra_options": "--no-index", **options}
    return {"python": None, "layers": [{"kind": "pip", "args": list(packages), "options": options}]}


def _run(command: list[str], program: str) -> str:
    done = subprocess.run([*command, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_environment_has_its_packages_only_and_is_built_once(tmp_path: Path, wheels: Path) -> None:
    image, root, lines = _image(wheels, "tinypkg"), tmp_path / "environments", list[str]()
    assert environment.needs_build(image) and environment.built(image, root) is None
    pythons: list[list[str]] = []
    threads = [
        threading.Thread(
            target=lambda: pythons.append(environment.interpreter_command(image, root, log=lines.append))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pythons) == 3 and pythons[0] == pythons[1] == pythons[2]
    assert len([x for x in lines if "tinypkg" in x]) == 1
    assert environment.built(image, root) == Path(pythons[0][0])
    assert ImageSpec.from_dict(image).environment_key in pythons[0][0]
    assert _run(pythons[0], "import tinypkg; print(tinypkg.VALUE)") == "42"
    absent = (
        "import importlib.util as u; print([u.find_spec(n) is None for n in ('pytest', 'modal_nomad', 'uv')])"
    )
    assert _run(pythons[0], absent) == "[True, True, True]"


def test_requirements_without_uv(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_uv", lambda: None)
    image = _image(wheels, requirements="sha")
    blobs = {"sha": b"# comment\ntinypkg==1.0\n"}
    python = environment.ensure(image, tmp_path / "environments", fetch=blobs.__getitem__)
    assert _run([str(python), "-I"], "import tinypkg; print(tinypkg.VALUE)") == "42"


def test_a_failing_build_says_its_last_lines_and_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    image, root = _image(wheels, "no-such-package"), tmp_path / "environments"
    with pytest.raises(
        ImageBuildError, match=r"step 1 \(pip install no-such-package\) failed:(.|\n)*no-such-package"
    ):
        environment.ensure(image, root)
    assert environment.built(image, root) is None and [p.suffix for p in root.iterdir()] == [".lock"]


def test_an_unreachable_index_is_told_from_an_absent_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    # Bound and not listening: a refused connection, on every machine.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{closed.getsockname()[1]}"
        image = _image(Path(), "tinypkg", index_url=index, extra_options="")
        with pytest.raises(ImageBuildError, match=r"tinypkg\) failed; the package index cannot be reached"):
            environment.ensure(image, tmp_path / "environments")


@pytest.mark.parametrize(
    ("line", "unreachable"),
    [
        ("  ╰─▶ dns error: failed to lookup address information: Name or service not known", True),
        ("WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'", True),
        ("WARNING: Retrying after 'ReadTimeoutError(\"Read timed out.\")': /simple/x/", True),
        ("  ╰─▶ Because x was not found in the package registry", False),
        ("HTTP status client error (401 Unauthorized) for url (https://x.example/simple/)", False),
    ],
)
def test_how_builders_say_unreachable(line: str, unreachable: bool) -> None:
    assert bool(environment._UNREACHABLE.search(line)) is unreachable


def test_the_environment_of_a_step_reaches_the_builder(tmp_path: Path, wheels: Path) -> None:
    env = {"UV_FIND_LINKS": str(wheels), "UV_NO_INDEX": "1"}
    image = {"python": None, "layers": [{"kind": "pip", "args": ["tinypkg"], "options": {"env": env}}]}
    assert _run([str(environment.ensure(image, tmp_path / "environments"))], "import tinypkg") == ""


def test_what_the_installer_is_told() -> None:
    options = {
        "index_url": "https://one.example",
        "extra_index_url": "https://two.example",
        "find_links": "/wheels",
        "pre": True,
        "extra_options": "--no-deps --no-clean",
    }
    layer = ImageLayer("pip", ("a",), options)
    places = [
        "--index-url",
        "https://one.example",
        "--extra-index-url",
        "https://two.example",
        "--find-links",
        "/wheels",
    ]
    assert environment._options(layer, uv=True) == [*places, "--prerelease", "allow", "--no-deps"]
    assert environment._options(layer, uv=False) == [*places, "--pre", "--no-deps", "--no-clean"]


def test_copied_files_that_cannot_be_fetched_are_named(tmp_path: Path) -> None:
    image = {"layers": [{"kind": "copy", "args": ["/data"], "options": {"manifest": "0" * 64}}]}

    def fetch(sha: str) -> bytes:
        raise KeyError(sha)

    with pytest.raises(ImageBuildError, match=r"step copy /data cannot be fetched .*publish the app again"):
        environment.ensure(image, tmp_path / "environments", fetch=fetch)
    with pytest.raises(ImageBuildError, match="nothing here can fetch them"):
        environment.ensure(image, tmp_path / "environments")


def test_remains_of_a_killed_build_are_replaced(tmp_path: Path, wheels: Path) -> None:
    image, root = _image(wheels, "tinypkg"), tmp_path / "environments"
    (root / ImageSpec.from_dict(image).environment_key / "bin").mkdir(parents=True)
    assert _run([str(environment.ensure(image, root))], "import tinypkg") == ""


def test_no_layers_need_no_build(tmp_path: Path) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for image in ({}, {"python": version}, {"python": None, "layers": []}):
        command = environment.interpreter_command(image, tmp_path / "none")
        assert command[1:] == ["-I", "-S"] and not (tmp_path / "none").exists()
    assert _run(command, "import importlib.util as u; print(u.find_spec('pytest'))") == "None"


@pytest.mark.parametrize("with_uv", [True, False])
def test_an_absent_python_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_uv: bool
) -> None:
    if not with_uv:
        monkeypatch.setattr(environment, "find_uv", lambda: None)
    with pytest.raises(ImageBuildError, match=r"no usable Python 3\.99 .*install.*python_version="):
        environment.ensure({"python": "3.99"}, tmp_path / "environments")


def test_other_steps_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="'apt' needs a container runtime"):
        environment.ensure({"layers": [{"kind": "apt", "args": ["git"]}]}, tmp_path / "environments")
    assert not (tmp_path / "environments").exists()


def test_an_unwritable_root_names_the_remedy(tmp_path: Path, wheels: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageBuildError, match="MODAL_ENVIRONMENTS_DIR"):
        environment.ensure(_image(wheels, "tinypkg"), tmp_path / "file" / "environments")


def test_pyenvs_interpreters_are_found_behind_its_shims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("3.9.2", "3.9.18", "3.91.0", "3.9-dev", "pypy3.9-7.3"):
        (tmp_path / "versions" / name / "bin").mkdir(parents=True)
        (tmp_path / "versions" / name / "bin" / "python").touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    found = environment._pyenv_python(ImageSpec(python="3.9"))
    assert found == str(tmp_path / "versions" / "3.9.18" / "bin" / "python")
    assert environment._pyenv_python(ImageSpec(python="3.8")) is None
