"""The wheel is whole: it works where there is nothing but it and its dependencies."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.venvs import closure, closure_venv, normalise

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("modalkit-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a venv with only the wheel and its dependencies."""
    return installed(wheel, tmp_path_factory.mktemp("bare") / "venv")


def installed(wheel: Path, venv: Path, *more: str) -> Path:
    """Make a venv with the wheel, its dependencies and *more*; return its interpreter."""
    (found,) = metadata.distributions(name="modalkit", path=[str(wheel)])
    required = [text for text in found.requires or [] if "extra ==" not in text]
    python = closure_venv(venv, *required, *more)
    install = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    return python


def ask(python: Path, code: str, cwd: Path) -> str:
    """Run code in isolation from this checkout; return what it prints."""
    done = subprocess.run(
        [python, "-I", "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_resolves(python: Path, tmp_path: Path) -> None:
    """Each name of `__all__` is there, without torch, numpy or pytest to lean on."""
    code = """
import importlib.util, sys, modalkit
for absent in ("torch", "numpy", "pytest"):
    assert importlib.util.find_spec(absent) is None, absent
for name in modalkit.__all__:
    getattr(modalkit, name)
print(modalkit.__file__, len(modalkit.__all__))
"""
    file, count = ask(python, code, tmp_path).split()

    assert Path(file).is_relative_to(python.parents[1])
    assert int(count) > 10


def test_nothing_of_the_package_is_left_out(python: Path, tmp_path: Path) -> None:
    """Every file of the checkout's package is installed: py.typed and data files too."""
    code = """
import modalkit, pathlib
root = pathlib.Path(modalkit.__file__).parent
print(*(f.relative_to(root) for f in root.rglob("*") if f.is_file()), sep="\\n")
"""
    package = ROOT / "modalkit"
    expected = {
        str(file.relative_to(package))
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    assert "py.typed" in expected
    assert expected <= set(ask(python, code, tmp_path).splitlines())


def test_the_command_is_installed(python: Path) -> None:
    """`modalkit --version` works from the wheel."""
    done = subprocess.run(
        [python.with_name("modalkit"), "--version"], capture_output=True, text=True, check=True
    )

    assert "modalkit" in done.stdout


@pytest.mark.slow
def test_the_pytest_plugin_is_found_where_there_is_pytest(wheel: Path, tmp_path: Path) -> None:
    """With nothing but the wheel and pytest, a test gets a plane by asking for it."""
    python = installed(wheel, tmp_path / "venv", "pytest")
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(plane): assert plane.profile == 'strict' and plane.pid")
    run = ["-m", "pytest", "-q", "--strict-markers", "--modalkit-profile", "strict", test]
    done = subprocess.run(
        [python, "-I", *run], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_closure_holds_what_is_required_and_no_more() -> None:
    """The venv builder follows requirements, extras included, and stops there."""
    names = closure(["modal"])

    assert {"modal", "grpclib", "protobuf", "aiohttp"} <= names
    assert not {"torch", "numpy", "pytest", "hatchling"} & names
    assert normalise("Ruamel.Yaml_x") == "ruamel-yaml-x"
