"""The Oxford-IIIT Pet set as an image folder: download, sort into `cat` and `other`, publish."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

SOURCE = "https://thor.robots.ox.ac.uk/pets/images.tar.gz"
MD5 = "5c4f3ee8e5d25df40f4fd59a7f44e54c"
EDGE = 160  # pixels of the shorter side as stored; the originals are larger than any use here


def fill(folder: Path, source: str = "", md5: str = "") -> dict[str, int]:
    """
    Make `folder/cat` and `folder/other` from the set's tarball; count what is in them.

    A folder that exists is whole, because it gets its name last; then nothing is downloaded.

    Args:
        folder: Where the pictures go; its parent must exist.
        source: Address of a tarball with pictures named as in the set; empty for the set itself.
        md5: What a tarball from *source* must hash to; empty to take any.
    """
    if not source:
        source, md5 = SOURCE, MD5
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tempfile.TemporaryFile() as tarball:
            _download(source, md5, tarball)
            _sort(tarball, partial)
        partial.rename(folder)
    return {label.name: len(list(label.iterdir())) for label in sorted(folder.iterdir())}


def _download(source: str, md5: str, target: IO[bytes]) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(source, timeout=60) as response:
        while block := response.read(1 << 20):
            digest.update(block)
            target.write(block)
    if md5 and digest.hexdigest() != md5:
        raise OSError(f"{source} has md5 {digest.hexdigest()}, expected {md5}: download it again")
    target.seek(0)


def _sort(tarball: IO[bytes], folder: Path) -> None:
    """Store every readable picture, smaller; the set's cats have names with a capital letter."""
    for label in ("cat", "other"):
        (folder / label).mkdir(parents=True)
    with tarfile.open(fileobj=tarball) as archive:
        for member in archive:
            name = Path(member.name).name
            if not (member.isfile() and name.endswith(".jpg")):
                continue
            label = "cat" if name[0].isupper() else "other"
            try:
                with Image.open(archive.extractfile(member)) as picture:
                    small = picture.convert("RGB")
            except UnidentifiedImageError:  # a few files of the set are not pictures
                continue
            small.thumbnail((EDGE * 2, EDGE * 2))
            small.save(folder / label / name, quality=90)
