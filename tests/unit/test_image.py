"""Images: immutable steps, lazy files, patterns of what to leave out."""

import dataclasses
import json
import stat
import sys
from pathlib import Path

import pytest

from modal_nomad.exception import ExecutionError, InvalidError, ModuleNotMountable
from modal_nomad.file_pattern_matcher import FilePatternMatcher
from modal_nomad.image import Image
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
    assert one._image_id != base.pip_install("b")._image_id


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
    assert forced._image_id == base.pip_install("a")._image_id


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
        (lambda: base.add_local_file("f", "/f").pip_install("a"), InvalidError, "cannot follow"),
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
    assert {f.blob for f in spec.files} == set(contents)
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


def test_requirements_file(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("# all\na>=1  # why\n\nb @ https://x.example/b.whl#sha=1\n")
    (layer,) = base.uv_pip_install(requirements=[str(tmp_path / "r.txt")])._resolve()[0].layers
    assert layer.args == ("a>=1", "b @ https://x.example/b.whl#sha=1")


def test_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    image = base.pip_install("a")
    with image.imports():
        import no_such_module_anywhere  # noqa: F401
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")
    monkeypatch.setenv("MODAL_IMAGE_ID", base._image_id)
    with image.imports():
        raise ImportError
    monkeypatch.setenv("MODAL_IMAGE_ID", image._image_id)
    with pytest.raises(ImportError), image.imports():
        raise ImportError


@pytest.mark.parametrize(
    ("patterns", "path", "matches"),
    [
        ([], "a", False),
        (["*.txt"], "a.txt", True),
        (["*.txt"], "d/a.txt", False),
        (["**/*.txt"], "a.txt", True),
        (["**/*.txt"], "d/e/a.txt", True),
        (["d"], "d/e/a.txt", True),
        (["d"], "dd", False),
        (["/d/"], "d/x", True),
        (["d/**"], "d/e/x", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["a?c"], "abc", True),
        (["a?c"], "a/c", False),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["[^a-c]x"], "dx", True),
        (["[c-a]x"], "bx", False),
        ([r"a\*"], "a*", True),
        ([r"a\*"], "ab", False),
        ([" a ", "  "], "a", True),
        (["*", "!keep"], "keep", False),
        (["*", "!keep"], "drop", True),
        (["!keep", "*"], "keep", True),
        (["a.b"], "aXb", False),
        (["./a/../b"], "b", True),
    ],
)
def test_patterns(patterns: list[str], path: str, matches: bool) -> None:
    matcher = FilePatternMatcher(*patterns)
    assert matcher(Path(path)) is matches
    assert (~matcher)(Path(path)) is not matches
    assert (~~matcher)(Path(path)) is matches


@pytest.mark.parametrize("pattern", ["!", " ! ", "[", "[]", "[a", "[^", "[-x]", "[x-]", "a\\"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        FilePatternMatcher(pattern)


def test_patterns_from_a_file_are_read_late(tmp_path: Path) -> None:
    matcher = FilePatternMatcher.from_file(tmp_path / "ignore")
    (tmp_path / "ignore").write_text("# no\n*.txt\n!keep.txt\n")
    assert matcher(Path("a.txt")) and not matcher(Path("keep.txt")) and not matcher(Path("# no"))
