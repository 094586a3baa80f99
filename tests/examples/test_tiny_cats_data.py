"""The pictures of tiny_cats: balanced, disjoint, and where they are missing, said so."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cats import data, pets
from PIL import Image


def test_photographs_are_balanced_and_repeatable() -> None:
    """Both classes are equally many, and every call cuts the same patches."""
    train, val = data.from_photographs(train=200, val=80)
    again, _ = data.from_photographs(train=200, val=80)

    for dataset, count in ((train, 200), (val, 80)):
        images, labels = dataset.tensors
        assert images.shape == (count, 3, data.SIDE, data.SIDE)
        assert images.dtype == torch.uint8
        assert labels.float().mean() == 0.5
    assert torch.equal(train.tensors[0], again.tensors[0])


def test_validation_shares_no_pixel_with_training() -> None:
    """A photograph whose pixels are all different gives two disjoint sets of pixels."""
    numbers = np.arange(400 * 500, dtype=np.uint32).reshape(400, 500)
    pixels = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], -1).astype(np.uint8)
    seen: list[set[int]] = []
    for validation in (False, True):
        source = data._source(pixels, validation=validation)
        patches = data._patches(300, source, [source], np.random.default_rng(0)).tensors[0].long()
        values = (patches[:, 0] << 16) + (patches[:, 1] << 8) + patches[:, 2]
        seen.append(set(values.flatten().tolist()))

    assert all(len(pixels) > 20_000 for pixels in seen)
    assert not seen[0] & seen[1]


def test_augmentation_draws_from_torchs_own_generator_only() -> None:
    """The same generator state gives the same pictures, another gives others."""
    images = data.from_photographs(train=8, val=8)[0].tensors[0]
    torch.manual_seed(1)
    first, other = data.augment(images), data.augment(images)
    torch.manual_seed(1)

    assert torch.equal(first, data.augment(images))
    assert not torch.equal(first, other)
    assert first.shape == data.plain(images).shape == (8, 3, data.CROP, data.CROP)


def test_a_missing_folder_says_what_fills_it(tmp_path: Path) -> None:
    """Path, what was looked for, and the command."""
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "cat" / "one.jpg")

    with pytest.raises(FileNotFoundError) as caught:
        data.load(str(tmp_path))

    message = str(caught.value)
    assert f"{tmp_path}/other/*.jpg" in message
    assert f"modal run app.py::prepare_data --folder {tmp_path}" in message


def test_the_pet_set_becomes_an_image_folder(
    tmp_path: Path, pets_url: str, pets_tarball: Path
) -> None:
    """Cats and others are told apart by name, what is no picture is left out, both load."""
    digest = hashlib.md5(pets_tarball.read_bytes()).hexdigest()

    counts = pets.fill(tmp_path / "cats", pets_url, digest)
    train, val = data.load(str(tmp_path / "cats"))

    assert counts == {"cat": 7, "other": 9}
    assert len(train) == 2 * 5
    assert len(val) == 2 * 2
    images, labels = val.tensors
    red, blue = images[:, 0].float().mean((1, 2)), images[:, 2].float().mean((1, 2))
    assert torch.equal(red > blue, labels == data.CAT)


def test_a_filled_folder_is_not_downloaded_again(tmp_path: Path) -> None:
    """A second call needs no network."""
    for label in ("cat", "other"):
        (tmp_path / "cats" / label).mkdir(parents=True)

    assert pets.fill(tmp_path / "cats", "http://127.0.0.1:1/gone") == {"cat": 0, "other": 0}


def test_a_torn_download_leaves_no_folder(tmp_path: Path, pets_url: str) -> None:
    """A digest that does not match is an error, and the next call starts anew."""
    with pytest.raises(OSError, match="expected 0000"):
        pets.fill(tmp_path / "cats", pets_url, "0000")

    assert not (tmp_path / "cats").exists()
    assert pets.fill(tmp_path / "cats", pets_url, "") == {"cat": 7, "other": 9}
