"""
Packs: the bytes of a checkpoint in one file, which every safetensors reader can open.

    8 bytes    length of the header, little endian
    header     JSON: name -> dtype, shape, offsets from the end of the header; padded with spaces
    data       each leaf at a multiple of 64 bytes; holes declared as U8 tensors `__pad__.N`

The format allows neither holes nor overlaps. Modalkit itself reads by its manifest, never by this
header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs
import xxhash

from modalkit.checkpoint import bulk, disk
from modalkit.checkpoint.bulk import Bulk
from modalkit.checkpoint.manifest import Row
from modalkit.errors import CheckpointCorruptError

ALIGNMENT: Final = 64
"""Bytes. What vector instructions and mapped tensors want; a cache line."""

HEADER_ALIGNMENT: Final = 4096
"""Bytes. Puts the data on a page of its own, for readers that bypass the page cache."""


@attrs.frozen
class _Layout:
    header: bytes
    offsets: tuple[int, ...]
    """From the end of the header, one per leaf."""


def copy_leaves(leaves: Mapping[str, Any]) -> tuple[dict[str, Bulk], dict[str, str]]:
    """Copy each leaf once; a tensor that is another one (tied weights) becomes an alias."""
    copies: dict[str, Bulk] = {}
    alias: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    # All leaves are alive until the end of this loop, so equal addresses are equal tensors.
    for name, leaf in leaves.items():
        key = bulk.same_memory_key(leaf)
        if key is not None and key in first:
            alias[name] = first[key]
            continue
        copies[name] = bulk.pack_copy(name, leaf)
        if key is not None:
            first[key] = name
    return copies, alias


def write_pack(path: Path, leaves: Mapping[str, Bulk]) -> list[Row]:
    """
    Write a new pack, force it to the disk, and return where each leaf lies in it.

    Raises:
        OSError: The file exists, or the disk refuses.
    """
    layout = _layout(leaves)
    rows = []
    with path.open("xb") as file:
        file.write(len(layout.header).to_bytes(8, "little") + layout.header)
        start = file.tell()
        for (name, leaf), offset in zip(leaves.items(), layout.offsets, strict=True):
            file.write(bytes(start + offset - file.tell()))
            file.write(leaf.data)
            digest = xxhash.xxh3_128_hexdigest(leaf.data)
            place = start + offset, leaf.data.nbytes
            rows.append(Row(name, leaf.kind, leaf.dtype, leaf.shape, 0, *place, digest))
        disk.sync_file(file)
    return rows


def read_pack(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """
    Return the leaves that *rows* name, each verified against its digest.

    Raises:
        CheckpointCorruptError: The file is missing, shorter than it must be, or altered.
    """
    leaves = {}
    try:
        with path.open("rb") as file:
            for row in sorted(rows, key=lambda row: row.offset):
                leaves[row.name] = _read_leaf(file, row)
    except OSError as error:
        raise CheckpointCorruptError(f"{path.name} cannot be read: {error}") from error
    return leaves


def _read_leaf(file: BinaryIO, row: Row) -> Any:
    value, memory = bulk.allocate(row.kind, row.dtype, row.shape)
    file.seek(row.offset)
    if _read_into(file, memory) != row.length:
        raise CheckpointCorruptError(f"{row.name}: the pack ends before it")
    if xxhash.xxh3_128_hexdigest(memory) != row.digest:
        raise CheckpointCorruptError(f"{row.name}: its bytes do not match their digest")
    return bulk.finish(value)


def _read_into(file: BinaryIO, memory: memoryview) -> int:
    """Fill *memory*; a read of a network file system may return less than was asked for."""
    filled = 0
    while filled < len(memory):
        count = file.readinto(memory[filled:])  # type: ignore[attr-defined]
        if not count:
            break
        filled += count
    return filled


def _layout(leaves: Mapping[str, Bulk]) -> _Layout:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "writer": "modalkit"}}
    offsets: list[int] = []
    end = 0
    for name, leaf in leaves.items():
        if hole := -end % ALIGNMENT:
            entries[f"__pad__.{len(offsets)}"] = _entry("U8", [hole], end, hole)
        offsets.append(end + hole)
        end += hole + leaf.data.nbytes
        known = leaf.dtype not in bulk.NOT_SAFETENSORS
        shape = list(leaf.shape) if known else [leaf.data.nbytes]
        dtype = leaf.dtype if known else "U8"
        entries[name] = _entry(dtype, shape, offsets[-1], leaf.data.nbytes)
    header = json.dumps(entries, separators=(",", ":")).encode()
    padded = math.ceil((8 + len(header)) / HEADER_ALIGNMENT) * HEADER_ALIGNMENT - 8
    return _Layout(header.ljust(padded), tuple(offsets))


def _entry(dtype: str, shape: list[int], start: int, length: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + length]}
