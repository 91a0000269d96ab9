"""Images that need a container runtime: what each step comes to."""

import json
from pathlib import Path
from typing import Any

import pytest

from modal_nomad._image_files import LocalFiles
from modal_nomad._image_publish import named
from modal_nomad.app import App
from modal_nomad.exception import DeprecationError, InvalidError, NotFoundError
from modal_nomad.image import Image
from modal_nomad.mount import Mount
from modal_nomad.render.image import BuildLayer, render_image
from modal_nomad.render.image_settings import ImageSettings
from modal_nomad.runner import function_specs
from modal_nomad.secret import Secret
from modal_nomad.wire.dockerfile import copied, instructions

ubuntu = Image.from_registry("ubuntu:22.04")
private = ubuntu.pip_install_private_repos


def test_a_registry_image_with_no_step_is_run_as_it_is() -> None:
    app = App("a", image=ubuntu.env({"A": "1"}).workdir("/w"))
    app.function(serialized=True, name="f")(lambda: 1)
    (spec,), _ = function_specs(app, "a")
    assert spec.image.needs_container and spec.image.python is None
    assert spec.container_image == spec.image.registry_tag == "ubuntu:22.04"


def test_a_python_environment_needs_no_container() -> None:
    image = Image.debian_slim().pip_install("a").env({"A": "1"})._resolve()[0]
    assert not image.needs_container and image.registry_tag == ""


def test_an_image_names_its_base() -> None:
    assert repr(ubuntu) == "Image.from_registry('ubuntu:22.04')"
    assert ubuntu == Image.from_registry("ubuntu:22.04") != Image.from_registry("ubuntu:24.04")
    assert ubuntu._definition != Image.from_registry("ubuntu:24.04")._definition


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Image.from_registry(""), InvalidError, "such as 'python:3.11-slim-bookworm'"),
        (lambda: Image.from_registry("--privileged"), InvalidError, "image of from_registry"),
        (lambda: Image.from_registry("a b"), InvalidError, "image of from_registry"),
        (lambda: Image.from_registry(3), InvalidError, "image of from_registry"),
        (lambda: Image.from_registry("a", secrets=[]), TypeError, "it takes one secret="),
        (lambda: Image.from_registry("a", platform="x"), TypeError, "no parameter 'platform'"),
    ],
)
def test_refused(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def layers(image: Image, **settings: str) -> tuple[BuildLayer, ...]:
    return render_image(image._resolve()[0], ImageSettings(**settings))


def test_each_step_is_a_layer_over_the_one_before() -> None:
    one, two, three = layers(
        Image.debian_slim("3.11").env({"A": "1"}).apt_install("git").run_commands("a", "b").cmd(["c"])
    )
    assert one.dockerfile.splitlines()[:2] == ["FROM python:3.11-slim-bookworm", 'ENV A="1"']
    assert two.dockerfile == f"FROM localhost/modal-nomad:{one.key[:32]}\nRUN a\nRUN b\n"
    assert three.dockerfile == f'FROM localhost/modal-nomad:{two.key[:32]}\nCMD ["c"]\n'
    assert (one.step, two.step) == ("image step 1 (apt install git)", "image step 2 (run a; b)")
    assert (one.parent, two.parent, three.parent) == ("", one.key, two.key)


def test_the_key_is_of_all_that_came_before_and_of_nothing_else() -> None:
    def last(image: Image, **settings: str) -> str:
        return layers(image, **settings)[-1].key

    image = ubuntu.run_commands("a").run_commands("b")
    assert last(image) == last(image, repository="registry.example.org:5000/x")
    assert last(image) != last(Image.from_registry("ubuntu:24.04").run_commands("a").run_commands("b"))
    assert last(image) != last(ubuntu.run_commands("c").run_commands("b"))
    assert last(image) != last(image, version="2024.10")
    assert last(image) != last(ubuntu.run_commands("a").run_commands("b", env={"A": "1"}))
    assert last(image) != last(ubuntu.run_commands("a").run_commands("b", gpu="any"))
    secrets = [Secret.from_name(x) for x in "xy"]
    keys = {last(ubuntu.run_commands("a", secrets=[secret])) for secret in secrets}
    assert len(keys) == 1


def test_force_build_is_of_one_step_and_those_after_it() -> None:
    image = ubuntu.run_commands("a").run_commands("b", force_build=True).run_commands("c")
    one, two = layers(image), layers(image)
    assert [a.key == b.key for a, b in zip(one, two, strict=True)] == [True, False, False]
    assert [layer.fresh for layer in one] == [False, True, False]
    forced = Image.from_registry("ubuntu:22.04", force_build=True).run_commands("a")
    assert layers(forced)[0].key != layers(forced)[0].key


def test_a_step_that_a_python_environment_cannot_have_makes_a_container() -> None:
    plain = Image.debian_slim("3.11").pip_install("a").workdir("/w")
    assert not plain._resolve()[0].needs_container
    for more in (
        plain.run_commands("x"),
        plain.pip_install("b", gpu="any"),
        plain.pip_install("b", secrets=[Secret.from_name("s")]),
        plain.uv_pip_install("b", uv_version="0.5.1"),
        plain.entrypoint([]),
    ):
        assert more._resolve()[0].needs_container
    assert plain.run_commands()._resolve()[0] == plain._resolve()[0]
    uv = layers(plain.uv_pip_install("b", uv_version="0.5.1"))[-1].dockerfile
    assert "pip install --no-cache-dir uv==0.5.1 && python -m uv pip install --system" in uv


def test_an_image_with_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    empty = Image.from_scratch()
    (layer,) = layers(empty.add_local_file(tmp_path / "f", "/f", copy=True))
    assert layer.dockerfile.splitlines() == ["FROM scratch", 'COPY ["f","/f"]']
    assert repr(empty) == "Image.from_scratch()" and empty._resolve()[0].registry_tag == ""


def test_dependencies_that_uv_locked(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]")
    image = Image.debian_slim("3.12").uv_sync(
        tmp_path, groups=["serving"], extras=["gpu"], extra_options="--offline", env={"A": "b c"}
    )
    with pytest.raises(NotFoundError, match=r"uv_sync: there is no file .*uv.lock: .*say frozen=False"):
        image._resolve()
    (loose,) = layers(Image.debian_slim("3.12").uv_sync(tmp_path, frozen=False))
    assert 'COPY ["pyproject.toml","/.uv/"]' in loose.dockerfile and "--frozen" not in loose.dockerfile
    (tmp_path / "uv.lock").write_text("version = 1")
    (layer,) = layers(image)
    assert "uv sync" in layer.step and [name for name, _, _ in layer.files] == ["pyproject.toml", "uv.lock"]
    assert "--frozen --group serving --extra gpu --offline" in layer.dockerfile
    assert "A='b c' UV_PROJECT_ENVIRONMENT=/.uv/.venv" in layer.dockerfile
    assert layer.dockerfile.endswith('ENV PATH="/.uv/.venv/bin:$PATH"\n')
    # Its environment has no pip.
    *_, more = layers(image.run_commands("true").pip_install("click", pre=True))
    assert "RUN uv pip install --no-cache --python /.uv/.venv/bin/python --pre click" in more.dockerfile
    (tmp_path / "uv.lock").write_text("version = 2")
    assert layers(image)[0].key != layer.key
    for wrong in ({"uv_project_dir": 3}, {"frozen": "yes"}, {"extra_options": "'"}, {"groups": [3]}):
        with pytest.raises(InvalidError, match=r"uv_sync"):
            Image.debian_slim().uv_sync(**wrong)  # type: ignore[arg-type]


def test_steps_that_several_images_share() -> None:
    def with_tools(image: Image, *names: str, word: str) -> Image:
        return image.apt_install(*names).env({"WORD": word})

    assert ubuntu.pipe(with_tools, "git", word="a") == ubuntu.apt_install("git").env({"WORD": "a"})
    with pytest.raises(InvalidError, match="it has to return the Image"):
        ubuntu.pipe(lambda image: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidError, match="give a function"):
        ubuntu.pipe(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["im-mine", "a b", "", "a:b:c", None])
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(InvalidError, match="the name of an Image is"):
        Image.from_name(name)
    with pytest.raises(InvalidError, match="the name of an Image is"):
        ubuntu.publish(name)


def test_an_image_is_named_without_a_build() -> None:
    app = App("a")
    app.function(serialized=True, name="f", image=ubuntu.run_commands("a"))(lambda: 1)
    app.function(serialized=True, name="g", image=Image.debian_slim("3.12").pip_install("b"))(lambda: 1)
    render = {"driver": "raw_exec"}
    built, plain = named(app, render, "registry.example.org:5000/x").values()
    assert built.reference.startswith("registry.example.org:5000/x:") and plain.reference == ""
    everything = named(app, {"driver": "docker", "build_plain_images": True}).values()
    assert all(x.reference.startswith("localhost/modal-nomad:") for x in everything)
    with pytest.raises(InvalidError, match="repository is 'Big'"):
        named(app, render, "Big")


def test_files_of_a_container_image_are_in_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    image = ubuntu.add_local_file(tmp_path / "f", "/a/", copy=True)
    spec, contents = image._resolve()
    (layer,) = render_image(spec, ImageSettings())
    assert spec.files == () and 'COPY ["a/f","/a/f"]' in layer.dockerfile
    assert json.loads(contents.whole()[layer.manifest])[0][0] == "/a/f"
    (tmp_path / "f").write_text("y")
    assert layers(image)[0].key != layer.key


def test_what_an_operator_says_of_base_images() -> None:
    ours = {
        "debian_slim": "mirror/py:{python}",
        "micromamba": "mirror/mm",
        "python": "mirror/cp:{python}",
    }
    assert layers(Image.debian_slim("3.12").apt_install("x"), **ours)[0].dockerfile.startswith(
        "FROM mirror/py:3.12\n"
    )
    assert layers(Image.micromamba("3.12"), **ours)[0].dockerfile.startswith("FROM mirror/mm\n")
    added = layers(Image.from_registry("ubuntu", add_python="3.12"), **ours)[0].dockerfile.splitlines()
    assert added[:2] == ["FROM mirror/cp:3.12 AS modal_python", "FROM ubuntu"]
    assert "python=3.12" in layers(Image.micromamba("3.12"))[0].dockerfile


@pytest.mark.parametrize("given", [{"version": "1999"}, {"repository": "Big/Letters"}])
def test_settings_that_cannot_be(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"version|repository"):
        ImageSettings(**given)


def test_credentials_go_with_the_base() -> None:
    secret = Secret.from_name("s")
    for image, cloud in (
        (Image.from_registry("a/b", secret=secret), ""),
        (Image.from_gcp_artifact_registry("a/b", secret), "gcp"),
        (Image.from_aws_ecr("a/b", secret), "aws"),
    ):
        (layer,) = layers(image)
        assert (layer.pull["cloud"], layer.pull["secrets"][0]["name"]) == (cloud, "s")
        assert image._resolve()[0].registry_tag == "" and layer.dockerfile == "FROM a/b\n"


def test_instructions_of_a_dockerfile() -> None:
    text = """# a comment
        from a AS b
        RUN one \\
          # between
          two
        COPY --chown=1:1 ["a b", "c", "/d"]
        COPY --from=b /x /y
        ADD https://example.org/z /z
        RUN <<EOF
        COPY not /this
        EOF
        COPY <<one <<two /place
        one
        two
        copy last* dir/ /e
    """
    found = instructions(text.split("\n"))
    assert [x.word for x in found] == ["FROM", "RUN", "COPY", "COPY", "ADD", "RUN", "COPY", "COPY"]
    assert found[1].rest == "one two" and found[2].flags == ("--chown=1:1",)
    assert copied(found) == ["a b", "c", "last*", "dir/"]


def test_only_what_is_copied_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/one.py", "a/two.txt", "b/three.py", "c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def sent(line: str, **options: Any) -> list[str]:
        spec, contents = ubuntu.dockerfile_commands(line, **options)._resolve()
        manifest = spec.layers[-1].options.get("manifest")
        return [place for place, _, _ in json.loads(contents.whole()[manifest])] if manifest else []

    assert sent("RUN true") == []
    assert sent("COPY a /x") == ["a/one.py", "a/two.txt"]
    assert sent("COPY *.py a/*.py /x/") == ["a/one.py", "c.py"]
    assert sent("COPY . /x", ignore=["b", "**/*.txt"]) == ["a/one.py", "c.py"]
    assert sent("COPY . /x", ignore=lambda path: path.suffix == ".py") == ["a/two.txt"]
    assert sent("COPY $x /x") == sent("COPY ./ /x") == ["a/one.py", "a/two.txt", "b/three.py", "c.py"]
    (tmp_path / ".dockerignore").write_text("a\n.dockerignore\n")
    assert sent("COPY . /x") == ["b/three.py", "c.py"]
    assert sent("COPY . /x", context_dir=tmp_path / "a") == ["one.py", "two.txt"]
    with pytest.raises(FileNotFoundError, match="dockerfile_commands copies 'absent'"):
        sent("COPY absent /x")
    with pytest.raises(InvalidError, match="outside of the build context"):
        sent("COPY ../x /x")
    with pytest.warns(DeprecationError, match="context_mount"):
        with_mount = ubuntu.dockerfile_commands(
            "COPY . /x", context_mount=Mount._of(LocalFiles("dir", str(tmp_path / "a"), "/"))
        )
    spec, contents = with_mount._resolve()
    assert [x[0] for x in json.loads(contents.whole()[spec.layers[-1].options["manifest"]])] == [
        "one.py",
        "two.txt",
    ]


def test_a_dockerfile_of_its_own_ignore_file(tmp_path: Path) -> None:
    (tmp_path / "My.Dockerfile").write_text("FROM x\nCOPY . /x\n")
    (tmp_path / "My.Dockerfile.dockerignore").write_text("*\n!a\n")
    for name in "ab":
        (tmp_path / name).write_text(name)
    spec, contents = Image.from_dockerfile(tmp_path / "My.Dockerfile", context_dir=tmp_path)._resolve()
    assert [x[0] for x in json.loads(contents.whole()[spec.layers[0].options["manifest"]])] == ["a"]
    assert spec.python is None and render_image(spec, ImageSettings())[0].dockerfile == "FROM x\nCOPY . /x\n"


def test_poetry_without_its_lock_file(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    project = str(tmp_path / "pyproject.toml")
    with pytest.raises(NotFoundError, match="ignore_lockfile=True"):
        ubuntu.poetry_install_from_file(project)._resolve()
    (layer,) = layers(ubuntu.poetry_install_from_file(project, ignore_lockfile=True, old_installer=True))
    assert 'COPY ["pyproject.toml"' in layer.dockerfile and "new-installer false" in layer.dockerfile
    # Poetry's later versions know none of the settings.
    assert "has no old installer" in layer.dockerfile


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ubuntu.apt_install("git; rm -rf /"), InvalidError, "no name of a Debian package"),
        (lambda: ubuntu.apt_install("--allow"), InvalidError, "no name of a Debian package"),
        (lambda: ubuntu.run_commands(3), InvalidError, "run_commands got 3"),
        (lambda: ubuntu.run_commands("a", secrets=["x"]), InvalidError, "secrets of run_commands"),
        (lambda: ubuntu.run_commands("a", env={"A": 1}), InvalidError, "env of run_commands"),
        (lambda: ubuntu.entrypoint("a"), InvalidError, "list of strings"),
        (lambda: ubuntu.shell(["a", 1]), InvalidError, "list of strings"),
        (lambda: ubuntu.cmd("a"), InvalidError, "list of strings"),
        (lambda: ubuntu.dockerfile_commands("COPY", context_files=[1]), InvalidError, "context_files"),
        (lambda: ubuntu.dockerfile_commands("COPY", context_mount=1), InvalidError, "give a modal.Mount"),
        (lambda: Image.from_dockerfile(""), InvalidError, "path of from_dockerfile"),
        (lambda: Image.from_dockerfile("x", build_args={"a": 1}), InvalidError, "build_args"),
        (lambda: Image.from_registry("x", add_python=3.11), TypeError, "add_python"),
        (lambda: Image.micromamba(3.11), TypeError, "python_version"),
        (lambda: Image.from_aws_ecr("a/b"), InvalidError, "needs secret="),
        (lambda: ubuntu.poetry_install_from_file(3), InvalidError, "poetry_pyproject_toml"),
        (
            lambda: private("https://github.com/a/b", git_user="a", secrets=[]),
            InvalidError,
            "without 'https://'",
        ),
        (
            lambda: ubuntu.pip_install_private_repos("github.com/a/b", git_user="a"),
            InvalidError,
            "GITHUB_TOKEN",
        ),
        (
            lambda: ubuntu.pip_install_private_repos("github.com/a/b", git_user="a:b"),
            InvalidError,
            "git_user",
        ),
        (
            lambda: ubuntu.add_local_file("f", "/f").run_commands("a"),
            InvalidError,
            "run_commands is a build step after",
        ),
    ],
)
def test_refused_steps(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_nobody_has_built_it() -> None:
    app = App("a", image=ubuntu.run_commands("a"))
    app.function(serialized=True, name="f")(lambda: 1)
    with pytest.raises(InvalidError, match="has to be built by a server"):
        function_specs(app, "a")


def test_functions_that_cannot_be_a_step() -> None:
    for make, message in (
        (lambda: ubuntu.run_function(lambda: 1), "got a lambda"),
        (lambda: ubuntu.run_function(3), "give a plain function"),
        (lambda: ubuntu.run_function(test_nobody_has_built_it, volumes={"/v": 1}), "volumes has 1 at /v"),
        (lambda: ubuntu.run_function(test_nobody_has_built_it, region=[1]), "region is "),
        (lambda: ubuntu.run_function(test_nobody_has_built_it, args="x"), "give a list and a dict"),
        (lambda: ubuntu.run_function(test_nobody_has_built_it, timeout=0), "timeout is 0"),
    ):
        with pytest.raises(InvalidError, match=message):
            make()
    large = ubuntu.run_function(test_nobody_has_built_it, args=["x" * (3 << 20)])
    with pytest.raises(InvalidError, match="at most 2048 KiB can travel"):
        large._resolve()
