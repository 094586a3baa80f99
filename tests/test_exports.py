"""The public surface: what `modalkit.__all__` promises is there, and nothing is promised twice."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import modalkit
from modalkit import errors

SOURCE = Path(modalkit.__file__)


def test_all_is_sorted_and_without_doubles():
    assert modalkit.__all__ == sorted(set(modalkit.__all__))


@pytest.mark.parametrize("name", modalkit.__all__)
def test_every_name_resolves_and_is_documented(name):
    value = getattr(modalkit, name)
    assert inspect.getdoc(value), name


def test_every_error_is_public_and_in_the_drawing():
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ModalkitError)
    }
    assert classes.keys() <= set(modalkit.__all__)
    for name in classes:
        assert name in errors.__doc__


def test_checkers_see_the_names_that_are_resolved_lazily():
    """The imports under TYPE_CHECKING and the lazy ones are the same, and make up `__all__`."""
    tree = ast.parse(SOURCE.read_text())
    (guard,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.pop("images") == "modalkit"
    assert seen == modalkit._HOMES
    eager = {name for name in modalkit.__all__ if hasattr(errors, name)}
    assert set(modalkit.__all__) == {*seen, *eager, "images"}


def test_run_is_the_function_and_no_module():
    from modalkit.runs.run import run

    assert modalkit.run is run


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'modalkit' has no attribute 'Trainer'"):
        _ = modalkit.Trainer


def test_dir_lists_the_public_names():
    assert set(modalkit.__all__) <= set(dir(modalkit))


def test_the_version_is_a_constant():
    assert f'__version__ = "{modalkit.__version__}"' in SOURCE.read_text()


def test_the_package_is_typed():
    assert SOURCE.with_name("py.typed").exists()
