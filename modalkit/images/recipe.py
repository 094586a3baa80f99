"""
An image as a value: steps that are recorded, and translated to Modal's methods at the end.

Steps may be written in any order. They are emitted by phase, what changes least first, because
Modal rebuilds everything after a step that changed, and wants mounted files after all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

import attrs

from modalkit import modal_objects
from modalkit.errors import RecipeError
from modalkit.images.runtime import (
    UV_VERSION,
    package_mount,
    requirement_name,
    requirements_layer,
)
from modalkit.modal_objects import ImageCall

if TYPE_CHECKING:
    import modal


def _strings(step: object, attribute: attrs.Attribute[Any], value: tuple[object, ...]) -> None:
    for item in value:
        if not isinstance(item, str):
            raise RecipeError(
                f"{type(step).__name__}: {item!r} in {attribute.name} is no string. "
                f"Pass each one as an argument of its own."
            )


def _string_pairs(_step: object, _attribute: attrs.Attribute[Any], value: tuple[Any, ...]) -> None:
    for name, text in value:
        if not (isinstance(name, str) and isinstance(text, str)):
            raise RecipeError(
                f"env({{{name!r}: {text!r}}}): an environment variable is a string. "
                f"Write {str(name)!r}: {str(text)!r}."
            )


def _absolute(step: object, _attribute: attrs.Attribute[Any], value: str) -> None:
    if not value.startswith("/"):
        raise RecipeError(
            f"{type(step).__name__}: remote path {value!r} is relative. "
            f"Modal wants an absolute one, such as '/root/{value}'."
        )


def _python(_recipe: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if not (isinstance(value, str) and re.fullmatch(r"3\.(1[1-9]|[2-9]\d)(\.\d+)?", value)):
        raise RecipeError(
            f"python={value!r}: modalkit needs Python 3.11 or newer. "
            f'Pass a version as a string, such as python="3.12".'
        )


def _not_modalkit(step: object, _attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if "modalkit" in map(requirement_name, value):
        raise RecipeError(
            f"{type(step).__name__}: every recipe brings modalkit along by itself, and on an index "
            f"that name is another project. Leave it out."
        )


@attrs.frozen
class AptInstall:
    """Debian packages."""

    packages: tuple[str, ...] = attrs.field(validator=_strings)


@attrs.frozen
class Env:
    """Environment variables of the image, sorted by name."""

    variables: tuple[tuple[str, str], ...] = attrs.field(validator=_string_pairs)


@attrs.frozen
class UvPipInstall:
    """Python packages, installed together."""

    packages: tuple[str, ...] = attrs.field(validator=[_strings, _not_modalkit])
    index_url: str | None
    extra_index_url: str | None
    extra_options: str


@attrs.frozen
class LocalPythonSource:
    """Local modules and packages, mounted where they can be imported."""

    modules: tuple[str, ...] = attrs.field(validator=[_strings, _not_modalkit])


@attrs.frozen
class LocalDir:
    """A local directory, mounted."""

    local_path: Path
    remote_path: str = attrs.field(validator=_absolute)
    ignore: tuple[str, ...] = attrs.field(validator=_strings)


@attrs.frozen
class LocalFile:
    """A local file, mounted."""

    local_path: Path
    remote_path: str = attrs.field(validator=_absolute)


Step = AptInstall | Env | UvPipInstall | LocalPythonSource | LocalDir | LocalFile

_BUILD_ORDER: Final = (AptInstall, Env, UvPipInstall)


@attrs.frozen
class ImageRecipe:
    """
    An immutable description of an image; begin one with `images.slim()`.

    Every method returns a new recipe. `to_modal()` builds nothing: Modal does, when the app runs.
    """

    python: str = attrs.field(validator=_python)
    steps: tuple[Step, ...] = ()
    has_modalkit: bool = False

    def apt_install(self, *packages: str) -> ImageRecipe:
        """Return a new recipe with these Debian packages."""
        return self._then(AptInstall(packages))

    def env(self, variables: Mapping[str, str]) -> ImageRecipe:
        """Return a new recipe with these environment variables, set before packages install."""
        return self._then(Env(tuple(sorted(variables.items()))))

    def uv_pip_install(
        self,
        *packages: str,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        extra_options: str = "",
    ) -> ImageRecipe:
        """
        Return a new recipe with these Python packages, installed together by a pinned uv.

        A package that modalkit needs too is installed as you name it, and not a second time.

        Args:
            *packages: Requirements such as "torch==2.9.1".
            index_url: The index to take them from, instead of the default one.
            extra_index_url: An index that is asked first.
            extra_options: Flags for `uv pip install`.

        Raises:
            RecipeError: A package is no string, or is `modalkit`.
        """
        return self._then(UvPipInstall(packages, index_url, extra_index_url, extra_options))

    def add_local_python_source(self, *modules: str) -> ImageRecipe:
        """
        Return a new recipe with these local modules or packages, mounted when a container starts.

        Modal takes their `.py` files only: add data files that lie beside them by `add_local_dir`.

        Raises:
            RecipeError: A module is no string, or is `modalkit`, which comes along by itself.
        """
        return self._then(LocalPythonSource(modules))

    def add_local_dir(
        self, local_path: str | Path, remote_path: str, *, ignore: Sequence[str] = ()
    ) -> ImageRecipe:
        """
        Return a new recipe with a local directory, mounted when a container starts.

        Args:
            local_path: The directory, relative to where `modal` is called.
            remote_path: Its absolute path in the container.
            ignore: What to leave out, as patterns of a `.dockerignore`.

        Raises:
            RecipeError: *remote_path* is relative.
        """
        return self._then(LocalDir(Path(local_path), remote_path, tuple(ignore)))

    def add_local_file(self, local_path: str | Path, remote_path: str) -> ImageRecipe:
        """
        Return a new recipe with a local file, mounted when a container starts.

        Raises:
            RecipeError: *remote_path* is relative.
        """
        return self._then(LocalFile(Path(local_path), remote_path))

    def with_modalkit(self) -> ImageRecipe:
        """Return a new recipe with modalkit and its runtime requirements; `to_modal` implies it."""
        return attrs.evolve(self, has_modalkit=True)

    def to_modal(self) -> modal.Image:
        """Return the `modal.Image` for `modal.App(image=...)`, with modalkit in it."""
        base, *calls = lower(self.with_modalkit())
        return modal_objects.image(base, calls)

    def _then(self, step: Step) -> ImageRecipe:
        return attrs.evolve(self, steps=(*self.steps, step))


def lower(recipe: ImageRecipe) -> tuple[ImageCall, ...]:
    """Return *recipe* as calls of `modal.Image` methods in the order of emission, base first."""
    built = [s for kind in _BUILD_ORDER for s in recipe.steps if isinstance(s, kind)]
    mounted = [s for s in recipe.steps if not isinstance(s, _BUILD_ORDER)]
    base = ImageCall("debian_slim", (), {"python_version": recipe.python})
    requirements: tuple[ImageCall, ...] = ()
    package: tuple[ImageCall, ...] = ()
    if recipe.has_modalkit:
        packages = [p for s in recipe.steps if isinstance(s, UvPipInstall) for p in s.packages]
        requirements = requirements_layer(frozenset(map(requirement_name, packages)))
        package = (package_mount(),)
    return (base, *map(_call, built), *requirements, *map(_call, mounted), *package)


def _call(step: Step) -> ImageCall:
    match step:
        case AptInstall(packages):
            return ImageCall("apt_install", packages)
        case Env(variables):
            return ImageCall("env", (dict(variables),))
        case UvPipInstall(packages):
            options = attrs.asdict(step, filter=lambda field, _: field.name != "packages")
            return ImageCall("uv_pip_install", packages, {**options, "uv_version": UV_VERSION})
        case LocalPythonSource(modules):
            return ImageCall("add_local_python_source", modules)
        case LocalDir(local_path, remote_path, ignore):
            return ImageCall("add_local_dir", (local_path, remote_path), {"ignore": list(ignore)})
        case LocalFile(local_path, remote_path):
            return ImageCall("add_local_file", (local_path, remote_path))
    assert_never(step)
