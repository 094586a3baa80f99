"""
Image recipes: what goes into a container, described as data and built by Modal.

    image = images.slim(python="3.12").apt_install("git").uv_pip_install("torch==2.9.1").to_modal()

Every recipe brings modalkit itself along; `add_to(image)` does that for a plain `modal.Image`.
"""

from modalkit.images.catalog import slim
from modalkit.images.recipe import ImageRecipe
from modalkit.images.runtime import add_to

__all__ = ["ImageRecipe", "add_to", "slim"]
