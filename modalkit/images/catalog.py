"""Ready-made beginnings of recipes."""

from __future__ import annotations

from modalkit.images.recipe import ImageRecipe


def slim(*, python: str = "3.12") -> ImageRecipe:
    """
    Return a recipe on Debian slim with CPython and a C compiler: enough for wheels from an index.

    Args:
        python: Version of Python, 3.11 or newer, such as "3.12" or "3.12.10". The default is fixed
            and not the laptop's version, so that everybody who runs the app gets the same image.

    Raises:
        RecipeError: *python* is not such a version.
    """
    return ImageRecipe(python=python)
