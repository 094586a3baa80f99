"""
Pictures of cats and of other things, as two tensors in memory: a training and a validation set.

By default they are patches of the photographs that scikit-image carries in its package (Chelsea the
cat against an astronaut, a cup of coffee, a motorcycle and a rocket).  With a folder they are whole
pictures: `<folder>/cat/*.jpg` and `<folder>/other/*.jpg`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

SIDE = 48  # pixels of a stored picture, each way
CROP = 40  # pixels that the network sees; training moves the window about
TILE = 52  # photographs are divided into tiles of this edge; every fifth validates
CAT, OTHER = 1, 0
CHELSEA = ("chelsea.png", (30, 0, 350, 300))  # without the blurred room behind her
OTHERS = (
    ("astronaut.png", (0, 0, 512, 512)),
    ("coffee.png", (0, 0, 600, 400)),
    ("motorcycle_left.png", (0, 0, 741, 500)),
    ("rocket.jpg", (0, 0, 640, 427)),
)
SUFFIXES = {".jpg", ".jpeg", ".png"}


def load(folder: str = "") -> tuple[TensorDataset, TensorDataset]:
    """
    Return the training set and the validation set.

    Args:
        folder: A directory with the folders `cat` and `other`; empty for the photographs that come
            with scikit-image.

    Raises:
        FileNotFoundError: There is no such directory, or one of its two folders has no pictures.
    """
    return from_folder(Path(folder)) if folder else from_photographs()


def from_photographs(train: int = 3840, val: int = 960) -> tuple[TensorDataset, TensorDataset]:
    """Cut patches at random places; no pixel of a validation tile is in a training patch."""
    places = np.random.default_rng(0)
    photos = [_photograph(name, box) for name, box in (CHELSEA, *OTHERS)]
    cat, *others = (_source(photo, validation=False) for photo in photos)
    held_out_cat, *held_out_others = (_source(photo, validation=True) for photo in photos)
    return (
        _patches(train, cat, others, places),
        _patches(val, held_out_cat, held_out_others, places),
    )


class Source(NamedTuple):
    """A photograph and the corners (y, x) at which a patch may be cut from it."""

    pixels: np.ndarray
    corners: np.ndarray


def _photograph(name: str, box: tuple[int, int, int, int]) -> np.ndarray:
    """Read part of a photograph, as (height, width, 3) bytes."""
    with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
        return np.asarray(photo.convert("RGB").crop(box))


def _source(pixels: np.ndarray, *, validation: bool) -> Source:
    """Allow the corners whose patch lies wholly inside, or wholly outside, the validation tiles."""
    height, width, _ = pixels.shape
    rows, columns = np.arange(height)[:, None] // TILE, np.arange(width) // TILE
    held_out = (rows + 2 * columns) % 5 == 0
    ok = held_out if validation else ~held_out
    far = SIDE - 1  # a patch is smaller than a tile, so its four corners tell all
    inside = ok[:-far, :-far] & ok[far:, :-far] & ok[:-far, far:] & ok[far:, far:]
    return Source(pixels, np.argwhere(inside))


def _patches(
    count: int, cat: Source, others: list[Source], places: np.random.Generator
) -> TensorDataset:
    """Cut as many patches of the cat as of all other photographs together."""
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        photo = cat if i % 2 else others[i // 2 % len(others)]
        y, x = places.choice(photo.corners)
        images[i] = photo.pixels[y : y + SIDE, x : x + SIDE]
    return _dataset(images, [CAT if i % 2 else OTHER for i in range(count)])


def from_folder(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """Read pictures of both classes, equally many; every fifth of each class validates."""
    cats, others = find(folder)
    pairs = list(zip(cats, others, strict=False))  # the longer class is cut: balanced
    return _read([pair for i, pair in enumerate(pairs) if i % 5]), _read(pairs[::5])


def find(folder: Path) -> list[list[Path]]:
    """
    Return the files of both classes, cats first.

    Raises:
        FileNotFoundError: One of the two has no pictures; the message says how to fill the folder.
    """
    classes = []
    for label in ("cat", "other"):
        files = sorted(f for f in folder.glob(f"{label}/*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(
                f"no pictures in --data-dir {folder}: looked for {folder / label}/*.jpg (or png). "
                f"Fill it with: modal run app.py::prepare_data --folder {folder}"
            )
        classes.append(files)
    return classes


def _read(pairs: list[tuple[Path, Path]]) -> TensorDataset:
    images = np.stack([_square(file) for pair in pairs for file in pair])
    return _dataset(images, [CAT, OTHER] * len(pairs))


def _square(file: Path) -> np.ndarray:
    """Read the middle of a picture, scaled to the stored size."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return np.asarray(picture.resize((SIDE, SIDE), box=box))


def _dataset(images: np.ndarray, labels: list[int]) -> TensorDataset:
    return TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))


def augment(images: Tensor) -> Tensor:
    """
    Return bytes as floats: another window, mirrored, brighter or darker, often without colour.

    All chance comes from torch's own generator, which a modalkit run saves and restores.
    """
    n, device = len(images), images.device
    chance = torch.rand(8, n, 1, 1, 1, device=device)
    x = _window(images.float() / 255, torch.rand(n, 2, device=device))
    x = torch.where(chance[0] < 0.5, x.flip(3), x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (0.6 + 0.8 * chance[1])
    x = (x - 0.5) * (0.8 + 0.4 * chance[2]) + 0.5
    return _normalise(x + 0.2 * chance[3] - 0.1)


def _window(x: Tensor, place: Tensor) -> Tensor:
    """Cut one window out of each picture, at a place given as two parts of the way."""
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = CROP / SIDE
    theta[:, :, 2] = (1 - CROP / SIDE) * (2 * place - 1)
    grid = functional.affine_grid(theta, [len(x), 3, CROP, CROP], align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def plain(images: Tensor) -> Tensor:
    """Return bytes as floats, the window in the middle: what validation sees."""
    margin = (SIDE - CROP) // 2
    return _normalise(images[:, :, margin:-margin, margin:-margin].float() / 255)


def _normalise(x: Tensor) -> Tensor:
    return (x - 0.45) / 0.25
