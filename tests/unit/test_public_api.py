"""What `import modal_nomad` gives, and what it costs."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import modal_nomad

EXPECTED = [
    "App",
    "Client",
    "CloudBucketMount",
    "Cls",
    "Cron",
    "Dict",
    "Environment",
    "Error",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "Mount",
    "NetworkFileSystem",
    "Period",
    "Proxy",
    "Queue",
    "Retries",
    "Secret",
    "Tunnel",
    "Volume",
    "asgi_app",
    "batched",
    "build",
    "concurrent",
    "config",
    "current_function_call_id",
    "current_input_id",
    "enable_output",
    "enter",
    "exit",
    "fastapi_endpoint",
    "forward",
    "gather",
    "is_local",
    "method",
    "parameter",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]
HEAVY = [
    "aiohttp",
    "uvloop",
    "msgspec",
    "typer",
    "rich",
    "nomad",
    "tomlkit",
    "cloudpickle",
    "modal_nomad.cli",
]


def test_all() -> None:
    assert modal_nomad.__all__ == EXPECTED == sorted(EXPECTED)
    assert set(EXPECTED) <= set(dir(modal_nomad))


@pytest.mark.parametrize("name", EXPECTED)
def test_each_name_resolves(name: str) -> None:
    assert getattr(modal_nomad, name) is not None


@pytest.mark.parametrize("name", modal_nomad.__all__)
def test_each_name_has_an_example(name: str) -> None:
    """They are run by tests/functional/test_docstring_examples.py."""
    found = getattr(modal_nomad, name)
    text = inspect.getdoc(found) or ""
    assert "Example" in text and ">>> " in text, f"the docstring of modal.{name} shows no example"


def test_each_public_method_has_an_example() -> None:
    bare = []
    for name in modal_nomad.__all__:
        kind = getattr(modal_nomad, name)
        bases = kind.__mro__ if inspect.isclass(kind) else ()
        for base in (b for b in bases if b.__module__.startswith("modal_nomad")):
            for method, value in vars(base).items():
                text = getattr(getattr(value, "__func__", value), "__doc__", None) or ""
                shown = ">>> " in text or text.startswith("Deprecated")
                if not (method.startswith("_") or shown) and callable(getattr(kind, method)):
                    bare.append(f"modal.{name}.{method}")
    assert bare == []


# They define, describe or look at what is here: all else asks the server, and so has an async twin.
WITHOUT_TWIN = {
    "App": {"cls", "function", "include", "local_entrypoint", "set_description"},
    "Client": {"is_closed"},
    "Cls": {"from_name", "with_batching", "with_concurrency", "with_options"},
    "Environment": {"from_context"},
    "Error": {"add_note", "with_traceback"},
    "FilePatternMatcher": {"can_prune_directories", "from_file"},
    "Function": {"from_name", "get_raw_f", "local", "with_batching", "with_concurrency", "with_options"},
    "Image": {
        "add_local_dir",
        "add_local_file",
        "add_local_python_source",
        "copy_local_dir",
        "copy_local_file",
        "copy_mount",
        "debian_slim",
        "env",
        "apt_install",
        "cmd",
        "dockerfile_commands",
        "entrypoint",
        "from_aws_ecr",
        "from_dockerfile",
        "from_gcp_artifact_registry",
        "from_registry",
        "from_scratch",
        "micromamba",
        "micromamba_install",
        "pip_install_private_repos",
        "pipe",
        "poetry_install_from_file",
        "run_commands",
        "run_function",
        "shell",
        "imports",
        "pip_install",
        "pip_install_from_pyproject",
        "pip_install_from_requirements",
        "uv_pip_install",
        "uv_sync",
        "workdir",
    },
    "Mount": {
        "add_local_dir",
        "add_local_file",
        "from_local_dir",
        "from_local_file",
        "from_local_python_packages",
    },
    "Secret": {"from_dict", "from_dotenv", "from_local_environ", "from_vault"},
    "Queue": {"validate_partition_key"},
    "Volume": {"batch_upload", "read_only", "with_mount_options"},
}
WITHOUT_IO = {
    "asgi_app",
    "fastapi_endpoint",
    "web_endpoint",
    "web_server",
    "wsgi_app",
    "batched",
    "build",
    "concurrent",
    "current_function_call_id",
    "current_input_id",
    "enable_output",
    "enter",
    "exit",
    "is_local",
    "method",
    "parameter",
}


@pytest.mark.parametrize("name", modal_nomad.__all__)
def test_whatever_asks_the_server_has_an_async_twin(name: str) -> None:
    kind = getattr(modal_nomad, name)
    if not inspect.isclass(kind):
        assert callable(kind) <= (hasattr(kind, "aio") or name in WITHOUT_IO)
        return
    methods = {n: getattr(kind, n) for n in dir(kind) if not n.startswith("_")}
    bare = {n for n, v in methods.items() if callable(v) and not hasattr(v, "aio")}
    # Factories of named objects are lazy: they ask nothing.
    expected = WITHOUT_TWIN.get(name, set())
    assert bare - {"from_id", "from_name"} == expected - {"from_id", "from_name"}


OBJECTS = [
    "Cls",
    "Dict",
    "Environment",
    "Function",
    "FunctionCall",
    "Image",
    "Mount",
    "NetworkFileSystem",
    "Proxy",
    "Queue",
    "Secret",
    "Volume",
]


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_have_no_constructor(name: str) -> None:
    kind = getattr(modal_nomad, name)
    with pytest.raises(modal_nomad.exception.InvalidError, match=f"{name} has no constructor"):
        kind()
    with pytest.raises(modal_nomad.exception.InvalidError, match=f"{name} has no constructor"):
        kind("my-name", {"a": "b"}, create_if_missing=True)


def test_gpu_is_an_alias_of_the_module() -> None:
    assert modal_nomad.GPU is modal_nomad.gpu
    assert modal_nomad.GPU.A100(count=2) == modal_nomad.gpu.A100(count=2)


@pytest.mark.parametrize("name", sorted(modal_nomad._SUBMODULES))
def test_submodules_resolve(name: str) -> None:
    assert getattr(modal_nomad, name).__name__ == f"modal_nomad.{name}"


def test_every_public_module_is_an_attribute_of_the_package() -> None:
    """``import modal`` is enough for ``modal.config.config``, as the reference writes it."""
    folder = Path(str(modal_nomad.__file__)).parent
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert modules == modal_nomad._SUBMODULES


def test_version() -> None:
    assert modal_nomad.__version__ == "0.1.0"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        modal_nomad.Nothing  # noqa: B018


def test_outside_a_container() -> None:
    assert modal_nomad.is_local()
    assert modal_nomad.current_input_id() is None
    assert modal_nomad.current_function_call_id() is None


@pytest.mark.parametrize(
    "code",
    [
        "import modal_nomad",
        "import modal_nomad as m\napp = m.App('x', image=m.Image.debian_slim())\n"
        "app.function(serialized=True)(lambda: 1)",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [name for name in HEAVY if name in out] == []
