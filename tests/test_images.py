"""Recipes, read back from the modal images that they become."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path, PurePosixPath

import modal
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

import modalkit
from modalkit import ImageRecipe, RecipeError, images
from modalkit.images.runtime import RUNTIME_REQUIREMENTS, UV_VERSION, requirement_name

ROOT = Path(__file__).parents[1]
BUILDER = "2025.06"


def steps(image):
    """Return what modal would build and mount: RUN and ENV lines, and mounts, base first."""
    inner = modal._utils.async_utils.synchronizer._translate_in(image)
    return [line for layer in _layers(inner) for line in layer]


def _layers(image):
    load = image._load
    cells = dict(zip(load.__code__.co_freevars, load.__closure__, strict=True))
    held = {name: cell.cell_contents for name, cell in cells.items()}
    if "mount" in held:
        yield from _layers(held["base_image"])
        yield held["mount"].entries
        return
    for base in held["base_images"].values():
        yield from _layers(base)
    yield held["dockerfile_function"](BUILDER).commands


def commands(image):
    return [step for step in steps(image) if isinstance(step, str)]


def mounts(image):
    return [step for step in steps(image) if not isinstance(step, str)]


def installs(image):
    """Return the packages of each `uv pip install`."""
    runs = [line for line in commands(image) if "uv pip install" in line]
    return [shlex.split(line.partition("--compile-bytecode ")[2]) for line in runs]


# ------------------------------------------------------------------------------------ the value


def test_a_recipe_is_an_immutable_value():
    recipe = images.slim()
    longer = recipe.apt_install("git")
    assert isinstance(longer, ImageRecipe)
    assert recipe == images.slim() != longer
    assert longer == images.slim().apt_install("git")
    assert hash(longer) == hash(images.slim().apt_install("git"))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13.1", "3.14"])
def test_slim_is_debian_slim_with_that_python(python):
    image = ImageRecipe(python=python).to_modal()
    assert images.slim(python=python) == ImageRecipe(python=python)
    assert re.match(rf"FROM python:{python}(\.\d+)?-slim-", commands(image)[0])


@pytest.mark.parametrize("python", [3.12, "3.10", "3", "2.7", "3.12.x", None, ""])
def test_a_python_without_modalkit_is_refused(python):
    with pytest.raises(RecipeError, match=r"3\.11 or newer.*such as python=\"3\.12\""):
        images.slim(python=python)


# ----------------------------------------------------------------------------- order of emission


def test_steps_are_emitted_by_phase_and_files_last():
    recipe = (
        images.slim()
        .add_local_python_source("tiny_cats")
        .uv_pip_install("torch==2.9.1")
        .add_local_file("labels.txt", "/root/labels.txt")
        .env({"B": "2 3", "A": "1"})
        .uv_pip_install("timm==1.0.0")
        .apt_install("git", "wget")
        .add_local_dir("conf", "/root/conf", ignore=["*.bak"])
    )
    image = recipe.to_modal()
    base = images.slim().to_modal()
    ours = len(commands(base)) - 3  # FROM, COPY and RUN of the runtime requirements
    assert commands(image)[ours:] == [
        "FROM base",
        "RUN apt-get update",
        "RUN apt-get install -y git wget",
        "FROM base",
        "ENV A=1",
        "ENV B='2 3'",
        *_uv("torch==2.9.1"),
        *_uv("timm==1.0.0"),
        *_uv(*RUNTIME_REQUIREMENTS),
    ]
    assert [type(step).__name__ for step in steps(image)[-4:]] == [
        "_MountedPythonModule",
        "_MountFile",
        "_MountDir",
        "_MountDir",
    ]
    assert [step.remote_path for step in mounts(image)[1:]] == [
        PurePosixPath("/root/labels.txt"),
        PurePosixPath("/root/conf"),
        PurePosixPath("/root/modalkit"),
    ]


def _uv(*packages):
    """Return how modal writes one layer of packages, installed by the pinned uv."""
    image = modal.Image.debian_slim(python_version="3.12").uv_pip_install(
        *packages, uv_version=UV_VERSION
    )
    return commands(image)[-3:]


def test_uv_is_pinned():
    image = images.slim().uv_pip_install("torch").to_modal()
    copies = [line for line in commands(image) if line.startswith("COPY")]
    assert len(copies) == 2
    assert all(f"/uv:{UV_VERSION} " in line for line in copies)


def test_indexes_and_flags_reach_uv():
    recipe = images.slim().uv_pip_install(
        "torch==2.9.1",
        index_url="https://index.example/a",
        extra_index_url="https://index.example/b",
        extra_options="--no-deps",
    )
    line = next(line for line in commands(recipe.to_modal()) if "torch" in line)
    for part in (
        "--index-url https://index.example/a",
        "--extra-index-url https://index.example/b",
        "--no-deps torch==2.9.1",
    ):
        assert part in line


@given(
    st.permutations(
        [
            lambda recipe: recipe.add_local_python_source("a"),
            lambda recipe: recipe.add_local_file("a", "/a"),
            lambda recipe: recipe.uv_pip_install("torch"),
            lambda recipe: recipe.apt_install("git"),
            lambda recipe: recipe.env({"A": "1"}),
            lambda recipe: recipe.with_modalkit(),
        ]
    )
)
def test_no_order_of_writing_puts_a_build_step_after_a_mounted_file(methods):
    """Modal would refuse that, but only when the image is built."""
    recipe = images.slim()
    for method in methods:
        recipe = method(recipe)
    kinds = [isinstance(step, str) for step in steps(recipe.to_modal())]
    assert kinds == sorted(kinds, reverse=True)


# ---------------------------------------------------------------------------- modalkit comes along


def test_every_recipe_brings_modalkit_along_and_saying_so_changes_nothing():
    implied = images.slim().to_modal()
    assert installs(implied) == [list(RUNTIME_REQUIREMENTS)]
    assert mounts(implied)[-1].remote_path == PurePosixPath("/root/modalkit")
    explicit = images.slim().with_modalkit().with_modalkit().uv_pip_install("torch").to_modal()
    assert installs(explicit) == [["torch"], list(RUNTIME_REQUIREMENTS)]
    assert len(mounts(explicit)) == 1


def test_the_whole_package_is_mounted_with_its_data_and_without_bytecode(tmp_path):
    package = Path(modalkit.__file__).parent
    expected = {
        PurePosixPath("/root/modalkit", path.relative_to(package).as_posix())
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    mounted = {remote for _, remote in mounts(images.slim().to_modal())[-1].get_files_to_upload()}
    assert mounted == expected
    assert PurePosixPath("/root/modalkit/py.typed") in mounted
    assert list(package.rglob("__pycache__")), "bytecode is there, and was left out"


def test_add_to_does_the_same_for_a_plain_image():
    plain = modal.Image.debian_slim(python_version="3.12")
    added = modalkit.add_to(plain)
    assert commands(added) == commands(images.slim().to_modal())
    assert [m.remote_path for m in mounts(added)] == [PurePosixPath("/root/modalkit")]


def test_add_to_an_image_that_ends_in_local_files_is_refused_at_once():
    """Modal says so too, but only when the image is built."""
    plain = modal.Image.debian_slim(python_version="3.12")
    with pytest.raises(RecipeError, match=r"Call modalkit\.add_to\(image\) first"):
        modalkit.add_to(plain.add_local_dir(".", "/root/here"))
    copied = modalkit.add_to(plain.add_local_dir(".", "/root/here", copy=True))
    assert installs(copied) == [list(RUNTIME_REQUIREMENTS)]


def test_a_requirement_that_you_name_is_yours_alone():
    image = images.slim().uv_pip_install("attrs==25.4.0", "XXHash[fast]>=3").to_modal()
    names = [{requirement_name(package) for package in layer} for layer in installs(image)]
    assert names == [{"attrs", "xxhash"}, {"structlog", "tenacity"}]


def test_with_all_requirements_named_there_is_no_layer_of_ours():
    mine = [requirement_name(requirement) for requirement in RUNTIME_REQUIREMENTS]
    assert installs(images.slim().uv_pip_install(*mine).to_modal()) == [mine]


@pytest.mark.parametrize("name", ["modalkit", "Modalkit==0.2.0", "modalkit[torch]", "modalkit>=0"])
def test_the_strangers_package_of_that_name_is_never_installed(name):
    with pytest.raises(RecipeError, match="on an index that name is another project"):
        images.slim().uv_pip_install("torch", name)
    assert "modalkit" not in str(commands(images.slim().to_modal()))


def test_modalkit_is_not_mounted_twice():
    with pytest.raises(RecipeError, match="brings modalkit along by itself"):
        images.slim().add_local_python_source("modalkit")


def test_the_requirements_are_the_projects_own_less_the_command_lines():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    pinned = {r.name: r.specifier for r in map(Requirement, RUNTIME_REQUIREMENTS)}
    assert set(declared) == {*pinned, "modal", "click", "rich"}
    for name, specifier in pinned.items():
        (pin,) = specifier
        assert pin.operator == "=="
        assert pin.version in declared[name]


@pytest.mark.parametrize("pin", RUNTIME_REQUIREMENTS)
def test_the_pins_are_what_these_tests_ran_with(pin):
    name, _, version = pin.partition("==")
    assert metadata.version(name) == version


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("uv_pip_install", (["torch", "numpy"],), "Pass each one as an argument of its own"),
        ("apt_install", (None,), "None in packages is no string"),
        ("add_local_python_source", (images,), "in modules is no string"),
        ("env", ({"A": 1},), "Write 'A': '1'"),
        ("add_local_dir", ("conf", "conf"), "such as '/root/conf'"),
        ("add_local_file", ("a.txt", "a.txt"), "such as '/root/a.txt'"),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(method, arguments, message):
    with pytest.raises(RecipeError, match=message):
        getattr(images.slim(), method)(*arguments)


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("attrs", "attrs"),
        ("Attrs==1", "attrs"),
        ("typing_extensions>=4", "typing-extensions"),
        ("ruamel.yaml", "ruamel-yaml"),
        ("x[a,b]~=1.0; python_version<'4'", "x"),
        ("x @ https://example.com/x.whl", "x"),
        ("./local.whl", "-"),
        ("", ""),
    ],
)
def test_names_of_requirements(requirement, name):
    assert requirement_name(requirement) == name
