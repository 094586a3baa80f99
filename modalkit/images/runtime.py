"""
How modalkit gets into an image: its runtime requirements as one layer, then itself, mounted.

It is never installed by its name from an index, where that name belongs to another project.
The directory that the laptop runs is the directory that the container runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modalkit import modal_objects
from modalkit.errors import RecipeError
from modalkit.modal_objects import ImageCall

if TYPE_CHECKING:
    import modal

UV_VERSION: Final = "0.13.9"
"""The uv that installs packages. Modal's default is the newest, which makes no two builds alike."""

RUNTIME_REQUIREMENTS: Final = (
    "attrs==26.1.0",
    "structlog==26.1.0",
    "tenacity==9.2.1",
    "xxhash==4.1.0",
)
"""All that modalkit needs in a container besides modal, and torch where it trains."""

REMOTE_PACKAGE: Final = "/root/modalkit"
"""Where the package lies in a container: Modal has `/root` on the module path."""

_PACKAGE: Final = Path(__file__).parent.parent


def requirement_name(requirement: str) -> str:
    """Return the normalised name of the project that *requirement* installs, such as `attrs`."""
    name = re.match(r"[\w.-]*", requirement)
    return re.sub(r"[-_.]+", "-", name.group() if name else "").lower()


def requirements_layer(installed: frozenset[str] = frozenset()) -> tuple[ImageCall, ...]:
    """Return the step that installs modalkit's requirements, less those *installed* by name."""
    missing = tuple(r for r in RUNTIME_REQUIREMENTS if requirement_name(r) not in installed)
    if not missing:
        return ()
    return (ImageCall("uv_pip_install", missing, {"uv_version": UV_VERSION}),)


def package_mount() -> ImageCall:
    """Return the step that mounts the whole package, data files included, without bytecode."""
    without = {"ignore": ["**/__pycache__"]}
    return ImageCall("add_local_dir", (_PACKAGE, REMOTE_PACKAGE), without)


def add_to(image: modal.Image) -> modal.Image:
    """
    Return *image* with modalkit in it: what `ImageRecipe.to_modal` does for a recipe.

    Call it before any `add_local_*`: Modal wants those last.

    Args:
        image: An image with Python 3.11 or newer.

    Raises:
        RecipeError: *image* already ends in files that are mounted at start-up.
    """
    # The only thing that Modal tells about an image before it is built.
    if not modal_objects.in_container() and repr(image) == "Image(local files)":
        raise RecipeError(
            "add_to(image) after image.add_local_*(...): Modal runs no build step after files that "
            "are mounted at start-up. Call modalkit.add_to(image) first and add_local_* on what it "
            "returns, or pass copy=True to add_local_*."
        )
    return modal_objects.extend(image, (*requirements_layer(), package_mount()))
