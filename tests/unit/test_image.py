"""Images: immutable steps, lazy files, patterns of what to leave out."""

import dataclasses
import json
import stat
import sys
from pathlib import Path

import pytest

from modal_nomad.app import App
from modal_nomad.exception import ExecutionError, InvalidError, ModuleNotMountable
from modal_nomad.image import DEFINITION_VARIABLE, Image
from modal_nomad.runner import function_specs
from modal_nomad.wire.spec import ImageSpec

base = Image.debian_slim("3.11")


def test_steps_return_new_images() -> None:
    with_package = base.pip_install("numpy>=2", ["a", "b[x]"], pre=True)
    assert base._resolve()[0].layers == ()
    (layer,) = with_package._resolve()[0].layers
    assert (layer.args, dict(layer.options)) == (("numpy>=2", "a", "b[x]"), {"pre": True})


def test_equal_definitions_share_a_key() -> None:
    one, two = base.pip_install("a"), Image.debian_slim("3.11").uv_pip_install(["a"])
    assert one == two and hash(one) == hash(two)
    assert one._resolve()[0].environment_key == two._resolve()[0].environment_key
    assert one._resolve()[0].image_id == two._resolve()[0].image_id
    assert one != base.pip_install("b") and one._definition != base.pip_install("b")._definition


def test_env_and_files_build_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    image = base.pip_install("a")
    more = image.env({"A": "1"}).env({"B": "2"}).workdir("/w").add_local_file(tmp_path / "f", "/f")
    spec, _ = more._resolve()
    assert spec.environment_key == image._resolve()[0].environment_key
    assert (dict(spec.env), spec.workdir, spec.files[0].path) == ({"A": "1", "B": "2"}, "/w", "/f")
    assert ImageSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def test_force_build_makes_a_new_key() -> None:
    forced = base.pip_install("a", force_build=True)
    assert forced._resolve()[0].environment_key != forced._resolve()[0].environment_key
    assert forced._definition == base.pip_install("a")._definition


def test_force_build_of_the_configuration_is_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("a", image=base.pip_install("a"))
    app.function(serialized=True, name="f")(lambda: 1)

    def key() -> str:
        (spec,), _ = function_specs(app, "a")
        return str(spec.image.environment_key)

    assert key() == key()
    monkeypatch.setenv("MODAL_FORCE_BUILD", "1")
    assert key() != key()


def test_default_python_is_the_local_series() -> None:
    series = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert Image.debian_slim()._resolve()[0].python == series


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Image(), InvalidError, "has no constructor"),
        (lambda: Image.debian_slim(3.11), TypeError, "string"),
        (lambda: Image.debian_slim("2.7"), InvalidError, "3.x"),
        (lambda: Image.debian_slim("3"), InvalidError, "3.x"),
        (lambda: base.pip_install("--pre"), InvalidError, "extra_options"),
        (lambda: base.pip_install(3), InvalidError, "strings"),
        (lambda: base.pip_install(""), InvalidError, "strings"),
        (lambda: base.pip_install("; rm"), InvalidError, "no requirement specifier"),
        (lambda: base.env({"A": 1}), InvalidError, "string"),
        (lambda: base.workdir("here"), InvalidError, "absolute"),
        (lambda: base.add_local_file("f", "f"), InvalidError, "absolute"),
        (lambda: base.add_local_dir("d", "d"), InvalidError, "absolute"),
        (lambda: base.add_local_python_source(sys), InvalidError, "strings"),
        (lambda: base.add_local_file("f", "/f").pip_install("a"), InvalidError, "copy=True"),
        (
            lambda: base.add_local_file("f", "/f").add_local_dir("d", "/d", copy=True),
            InvalidError,
            "copy=True",
        ),
        (lambda: base.pip_install("a", extra_options="'"), InvalidError, "extra_options of pip_install"),
        (lambda: base.pip_install("a", index_url=["x"]), InvalidError, "index_url of pip_install"),
        (lambda: base.pip_install("a", pre="yes"), InvalidError, "pre of pip_install"),
        (lambda: base.pip_install("a", env={"A": 1}), InvalidError, "env of pip_install"),
        (lambda: base.pip_install("a", gpu="T9"), InvalidError, "T9"),
        (lambda: base.uv_pip_install("a", secrets=[1]), InvalidError, "secrets of uv_pip_install"),
        (lambda: base.uv_pip_install("a", uv_version=5), InvalidError, "uv_version of uv_pip_install"),
        (lambda: base.uv_pip_install(requirements="r.txt"), InvalidError, "list of paths"),
        (lambda: Image.from_id("im-short"), InvalidError, "64 hex digits"),
        (lambda: base.object_id, ExecutionError, "has no id before"),
        (lambda: base.add_local_dir("d", "/d", ignore=["!"]), ValueError, "Illegal exclusion"),
        (lambda: base.hydrate(), ExecutionError, "cannot currently be hydrated on demand"),
        (lambda: base.add_local_file("/none", "/f")._resolve(), FileNotFoundError, "/none"),
        (lambda: base.add_local_dir("/none", "/f")._resolve(), FileNotFoundError, "/none"),
        (lambda: base.add_local_python_source("no_such")._resolve(), ModuleNotMountable, "no_such"),
        (lambda: base.add_local_python_source("sys")._resolve(), ModuleNotMountable, "sys"),
    ],
)
def test_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "sub" / "b.txt").write_text("same")
    (tmp_path / "sub" / "run.sh").write_text("other")
    (tmp_path / "sub" / "run.sh").chmod(0o755)
    spec, contents = base.add_local_dir(tmp_path, "/d", ignore=["a.*"])._resolve()
    assert [(f.path, stat.S_IMODE(f.mode)) for f in spec.files] == [
        ("/d/sub/b.txt", 0o644),
        ("/d/sub/run.sh", 0o755),
    ]
    assert {f.blob for f in spec.files} | {spec.image_id[3:]} == set(contents)
    called = base.add_local_dir(tmp_path, "/d", ignore=lambda p: p.is_relative_to("sub"))
    assert [f.path for f in called._resolve()[0].files] == ["/d/a.txt"]


def test_trailing_slash_keeps_the_name_and_the_later_file_wins(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    image = base.add_local_file(tmp_path / "one", "/d/").add_local_file(tmp_path / "two", "/d/one")
    spec, contents = image._resolve()
    assert [f.path for f in spec.files] == ["/d/one"]
    assert contents[spec.files[0].blob].name == "two"


def test_python_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mypkg"
    (package / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "data.json", ".hidden.py", "__pycache__/a.pyc"):
        (package / name).write_text("")
    (tmp_path / "single.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = [f.path for f in base.add_local_python_source("mypkg", "single")._resolve()[0].files]
    assert names == ["/root/mypkg/__init__.py", "/root/mypkg/a.py", "/root/single.py"]
    kept = base.add_local_python_source("mypkg", ignore=["a.py"])._resolve()[0].files
    assert [f.path for f in kept] == ["/root/mypkg/__init__.py", "/root/mypkg/data.json"]


def test_requirements_files_are_read_late_and_as_they_stand(tmp_path: Path) -> None:
    image = base.uv_pip_install("c", requirements=[str(tmp_path / "r.txt")])
    alike = base.pip_install_from_requirements(tmp_path / "r.txt")
    with pytest.raises(FileNotFoundError, match=r"uv_pip_install: there is no file .*r\.txt"):
        image._resolve()
    (tmp_path / "more").mkdir()
    (tmp_path / "r.txt").write_text(
        "# all\na>=1  # why\n\n-r more/s.txt\nb @ https://x.example/b.whl#sha=1\n"
    )
    (tmp_path / "more" / "s.txt").write_text("--pre\nd\n-r ../r.txt\n")
    spec, contents = image._resolve()
    (layer,) = spec.layers
    assert layer.args == ("c",) and list(layer.options) == ["requirements"]
    text = contents[layer.options["requirements"]]
    assert text == b"a>=1  # why\n--pre\nd\nb @ https://x.example/b.whl#sha=1\n"
    assert alike._resolve()[0].layers[0].options == layer.options


def test_pyproject(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    image = base.pip_install_from_pyproject(str(path), ["test"], index_url="https://x.example")
    with pytest.raises(FileNotFoundError, match="pip_install_from_pyproject: there is no file"):
        image._resolve()
    path.write_text('[project]\ndependencies = ["a>=1"]\n[project.optional-dependencies]\ntest = ["b"]\n')
    (layer,) = image._resolve()[0].layers
    assert (layer.args, dict(layer.options)) == (("a>=1", "b"), {"index_url": "https://x.example"})
    with pytest.raises(InvalidError, match=r"no optional dependencies 'doc'; it has \['test'\]"):
        base.pip_install_from_pyproject(path, ["doc"])._resolve()
    for text, message in (("[project]\n", "no .project. dependencies"), ("[", "no TOML file")):
        path.write_text(text)
        with pytest.raises(InvalidError, match=message):
            image._resolve()


def test_all_that_an_installer_is_told() -> None:
    image = base.env({"A": "image", "B": "image"}).pip_install(
        "a",
        find_links="/wheels",
        index_url="https://one.example",
        extra_index_url="https://two.example",
        pre=True,
        extra_options="--no-deps  --quiet",
        env={"B": "step"},
    )
    (layer,) = image.env({"C": "later"})._resolve()[0].layers
    assert dict(layer.options) == {
        "find_links": "/wheels",
        "index_url": "https://one.example",
        "extra_index_url": "https://two.example",
        "pre": True,
        "extra_options": "--no-deps --quiet",
        "env": {"A": "image", "B": "step"},
    }


def test_copied_files_are_part_of_what_is_built(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one")
    image = base.add_local_file(tmp_path / "f", "/f", copy=True).pip_install("a")
    one, contents = image._resolve()
    copy, _ = one.layers
    assert (copy.kind, copy.args, [f.path for f in one.files]) == ("copy", ("/f",), ["/f"])
    manifest = contents[copy.options["manifest"]]
    assert isinstance(manifest, bytes) and json.loads(manifest) == [["/f", one.files[0].blob, 0o644]]
    assert contents[one.files[0].blob] == tmp_path / "f"
    assert image._resolve()[0].environment_key == one.environment_key
    (tmp_path / "f").write_text("two")
    assert image._resolve()[0].environment_key != one.environment_key


def test_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    image = base.pip_install("a")
    with image.imports():
        import no_such_module_anywhere  # noqa: F401
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    monkeypatch.setenv(DEFINITION_VARIABLE, base._definition)
    with image.imports():
        raise ImportError
    monkeypatch.setenv(DEFINITION_VARIABLE, image._definition)
    with pytest.raises(ImportError), image.imports():
        raise ImportError


def test_an_id_in_a_container_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    image = Image.from_id("im-" + "a" * 64)
    assert image.object_id == "im-" + "a" * 64 and image != Image.from_id("im-" + "b" * 64)
    monkeypatch.setenv(DEFINITION_VARIABLE, image.env({"A": "1"})._definition)
    with pytest.raises(ImportError), image.imports():
        raise ImportError
