"""What an import costs: which modules may be loaded, and how long it may take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modalkit.images.runtime import RUNTIME_REQUIREMENTS
from tests.support.venvs import closure_venv

ROOT = Path(__file__).parents[1]

HEAVY = {"torch", "numpy", "modal", "structlog", "grpclib", "tenacity", "xxhash", "rich", "click"}


def loaded(statement: str, *, after: str = "") -> set[str]:
    """Return the top-level modules that *statement* loads, standard library left out."""
    code = (
        f"import json, sys\n{after}\nbefore = set(sys.modules)\n{statement}\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "json.dump(sorted(new - sys.stdlib_module_names), sys.stdout)"
    )
    return set(json.loads(_python(code)))


def _python(code: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ).stdout


def test_import_modalkit_loads_nothing_but_itself():
    assert loaded("import modalkit") == {"modalkit"}


def test_errors_are_there_without_more():
    assert loaded("from modalkit import ModalkitError, PolicyError") == {"modalkit"}


@pytest.mark.parametrize("name", ["RetryPolicy", "CommitPolicy", "Deployment", "images"])
def test_a_description_loads_attrs_only(name):
    """A script that prints a recipe, or a command line, needs no modal."""
    assert loaded(f"from modalkit import {name}") == {"modalkit", "attr", "attrs"}


def test_beside_modal_a_trainer_loads_attrs_only():
    new = loaded("from modalkit import SnapshotTrainer, RetryPolicy", after="import modal")
    assert new == {"modalkit", "attr", "attrs"}


def test_the_pytest_plugin_costs_a_run_without_a_plane_nothing():
    assert loaded("import modalkit.testing", after="import pytest") == {"modalkit"}


def test_the_whole_public_surface_needs_no_torch_until_it_is_used():
    everything = "import modalkit\nfor name in modalkit.__all__: getattr(modalkit, name)"
    assert loaded(everything, after="import modal") & {"torch", "numpy", "rich", "click"} <= set()


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_names_resolve_where_the_scientific_packages_are_missing(name):
    _python(
        "import sys\n"
        f"sys.modules[{name!r}] = None\n"
        "import modalkit\n"
        "for name in modalkit.__all__: getattr(modalkit, name)"
    )


def test_what_runs_in_a_container_needs_its_four_requirements_and_modal_only(tmp_path):
    """In a venv with exactly what a recipe installs beside the user's packages."""
    python = closure_venv(
        tmp_path / "venv", "modal", *(pin.partition("==")[0] for pin in RUNTIME_REQUIREMENTS)
    )
    code = (
        "import importlib, pkgutil, modalkit\n"
        "laptop = {'cli', 'local', 'testing', 'check', '__main__'}\n"
        "modules = pkgutil.walk_packages(modalkit.__path__, 'modalkit.')\n"
        "names = [m.name for m in modules if m.name.split('.')[1] not in laptop]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(*names)"
    )
    done = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert {"modalkit.trainer", "modalkit.runs.run", "modalkit.checkpoint.store"} <= set(
        done.stdout.split()
    )


def test_import_modalkit_takes_sixty_milliseconds_at_most():
    code = (
        "import time\nbegin = time.perf_counter()\nimport modalkit\n"
        "print(time.perf_counter() - begin)"
    )
    assert min(float(_python(code)) for _ in range(5)) <= 0.060
