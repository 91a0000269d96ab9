"""Images: what a container of one sees. Packages are wheels made here: no index is asked."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import Live

import modal_nomad as modal
from modal_nomad.worker.environment import find_uv


def wheel(folder: Path) -> None:
    """Write a wheel by hand: a package that no index has."""
    name = "mn_local_package-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        archive.writestr("mn_local_package.py", "ANSWER = 42\n")
        archive.writestr(
            f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: mn-local-package\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{name}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(
            f"{name}.dist-info/RECORD",
            f"mn_local_package.py,,\n{name}.dist-info/METADATA,,\n{name}.dist-info/WHEEL,,\n{name}.dist-info/RECORD,,\n",
        )


def test_an_image_with_a_package(live: Live) -> None:
    wheel(live.folder)
    image = (
        modal.Image.debian_slim(python_version=f"{sys.version_info[0]}.{sys.version_info[1]}")
        .uv_pip_install("mn-local-package", find_links=str(live.folder), extra_options="--no-index")
        .env({"FROM_IMAGE": "yes"})
    )
    app = modal.App("packaged", image=image)

    @app.function(serialized=True)
    def f() -> tuple[int, str]:
        import os

        import mn_local_package

        return mn_local_package.ANSWER, os.environ["FROM_IMAGE"]

    with app.run():
        assert app["f"].remote() == (42, "yes")


_PROJECT = """
[project]
name = "mine"
version = "1"
requires-python = ">=3.9"

[dependency-groups]
serving = ["mn-local-package"]

[tool.uv]
no-index = true
find-links = ["/mn-wheels"]
"""


def test_a_locked_project_beside_other_packages(live: Live) -> None:
    wheel(live.folder)
    project = live.folder / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(_PROJECT.replace("/mn-wheels", str(live.folder)))
    subprocess.run([str(find_uv()), "lock", "--quiet", "--directory", str(project)], check=True)
    locked = modal.Image.debian_slim().uv_sync(project, groups=["serving"])
    # Without a lock file, by wheels that only the build sees, and with a package more.
    loose = (
        modal.Image.debian_slim()
        .add_local_dir(live.folder, "/mn-wheels", copy=True, ignore=["project"])
        .pip_install("mn-local-package", find_links="/mn-wheels", extra_options="--no-index")
        .uv_sync(live.folder / "loose", frozen=False)
    )
    (live.folder / "loose").mkdir()
    (live.folder / "loose/pyproject.toml").write_text(_PROJECT.replace("serving", "unused"))
    app = modal.App("projects")

    def f() -> int:
        import mn_local_package

        return int(mn_local_package.ANSWER)

    app.function(serialized=True, name="locked", image=locked)(f)
    app.function(serialized=True, name="loose", image=loose)(f)
    with app.run():
        assert app["locked"].remote() == app["loose"].remote() == 42


def test_an_image_that_does_not_build_says_why(live: Live) -> None:
    image = modal.Image.debian_slim().uv_pip_install(
        "mn-absent-package", find_links=str(live.folder), extra_options="--no-index"
    )
    app = modal.App("unbuilt", image=image)

    @app.function(serialized=True)
    def f() -> int:
        return 1

    wanted = r"^image step 1 \(pip install mn-absent-package\) failed:(.|\n)*not found"
    with app.run(), pytest.raises(modal.exception.ImageBuildError, match=wanted) as caught:
        app["f"].remote()
    assert caught.value.image_id == image.object_id


def test_a_file_in_a_container(live: Live) -> None:
    source = live.write("words.txt", "some words")
    target = live.folder / "inside" / "words.txt"
    app = modal.App("files", image=modal.Image.debian_slim().add_local_file(str(source), str(target)))

    @app.function(serialized=True)
    def f() -> str:
        return target.read_text()

    with app.run():
        assert app["f"].remote() == "some words"


def test_a_copied_file_is_there_for_later_steps(live: Live) -> None:
    wheel(live.folder)
    image = (
        modal.Image.debian_slim()
        .add_local_dir(live.folder, "/mn-wheels", copy=True, ignore=["*.txt"])
        # --no-clean is a flag of pip that uv does not have.
        .pip_install("mn-local-package", find_links="/mn-wheels", extra_options="--no-index --no-clean")
    )
    live.write("left-out.txt", "")
    app = modal.App("copied", image=image)

    @app.function(serialized=True)
    def f() -> tuple[int, list[str]]:
        import os

        import mn_local_package

        return mn_local_package.ANSWER, os.listdir("/mn-wheels")

    with app.run():
        assert app["f"].remote() == (42, ["mn_local_package-1.0-py3-none-any.whl"])
    assert not Path("/mn-wheels").exists()


def test_the_working_directory_is_made_for_the_container_alone(live: Live) -> None:
    image = modal.Image.debian_slim().workdir("/mn-absent/inner")
    here = modal.Image.debian_slim().workdir(str(live.folder))
    app = modal.App("workdir")

    def f() -> str:
        import os

        with open("file", "w") as file:
            file.write("x")
        return os.getcwd()

    app.function(serialized=True, name="absent", image=image)(f)
    app.function(serialized=True, name="here", image=here)(f)
    with app.run():
        assert app["absent"].remote() == "/mn-absent/inner"
        assert app["here"].remote() == str(live.folder)
    assert not Path("/mn-absent").exists() and (live.folder / "file").exists()


def test_local_python_source_and_ignored_files(live: Live) -> None:
    package = live.folder / "mn_sources"
    package.mkdir()
    for name in ("__init__.py", "kept.py", "data.json"):
        (package / name).write_text("")
    script = live.write(
        "job.py",
        f"""
        import modal

        image = modal.Image.debian_slim().add_local_python_source("mn_sources")
        app = modal.App(image=image.add_local_dir({str(package)!r}, "/mn-data", ignore=["**/*.py"]))

        @app.function()
        def f():
            import os

            found = sorted(os.listdir("/root/mn_sources"))
            import mn_sources

            return os.listdir("/mn-data"), found, mn_sources.__file__

        @app.local_entrypoint()
        def main():
            print(f.remote())
        """,
    )
    done = live.cli("run", "-q", str(script))
    expected = (["data.json"], ["__init__.py", "kept.py"], "/root/mn_sources/__init__.py")
    assert done.stdout == f"{expected}\n", done.stderr
    image = modal.Image.debian_slim().add_local_dir(package, "/mn-data", ignore=lambda p: p.suffix == ".py")
    app = modal.App("called", image=image)

    @app.function(serialized=True)
    def g() -> list[str]:
        import os

        return os.listdir("/mn-data")

    with app.run():
        assert app["g"].remote() == ["data.json"]


def test_imports_and_files_that_only_the_caller_has(live: Live) -> None:
    wheel(live.folder)
    live.write("requirements.txt", "mn-local-package==1.0\n")
    script = live.write(
        "job.py",
        f"""
        import modal
        from pathlib import Path

        image = modal.Image.debian_slim().uv_pip_install(
            requirements=[Path(__file__).parent / "requirements.txt"],
            find_links={str(live.folder)!r},
            extra_options="--no-index",
        )
        app = modal.App(image=image)

        with image.imports():
            import mn_local_package

        @app.function()
        def f():
            return mn_local_package.ANSWER

        @app.function(image=modal.Image.debian_slim())
        def other():
            return "mn_local_package" in globals()

        @app.local_entrypoint()
        def main():
            print(f.remote(), other.remote())
        """,
    )
    done = live.cli("run", "-q", str(script))
    assert done.stdout == "42 False\n", done.stderr


def test_a_missing_package_is_told_in_containers_of_its_image(live: Live) -> None:
    script = live.write(
        "job.py",
        """
        import modal

        image = modal.Image.debian_slim().add_local_file(__file__, "/mn-file")
        app = modal.App(image=image)

        with image.imports():
            import mn_never_there

        @app.function()
        def f():
            return 1

        @app.local_entrypoint()
        def main():
            f.remote()
        """,
    )
    done = live.cli("run", "-q", str(script))
    assert done.returncode == 1 and "No module named 'mn_never_there'" in done.stderr


def test_an_image_by_its_id(live: Live) -> None:
    app = modal.App("first", image=modal.Image.debian_slim().env({"A": "1"}).workdir("/tmp"))
    image = app.image
    assert image is not None

    def f() -> tuple[str, str, str]:
        import os

        return os.environ["A"], os.environ.get("B", ""), os.getcwd()

    app.function(serialized=True)(f)
    with app.run():
        assert app["f"].remote() == ("1", "", "/tmp")
        assert image.hydrate() is image and image.object_id.startswith("im-")
    same = modal.Image.from_id(image.object_id)
    again = modal.App("second", image=same.env({"B": "2"}))
    again.function(serialized=True)(f)
    with again.run():
        assert again["f"].remote() == ("1", "2", "/tmp")
    assert same.object_id == image.object_id
    with pytest.raises(modal.exception.NotFoundError, match="there is no Image im-000"):
        modal.Image.from_id("im-" + "0" * 64)
