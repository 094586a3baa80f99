"""
The manifest: one JSON file that makes a checkpoint exist, and says where each byte of it is.

The body is followed by a newline and its xxh3-128 checksum. A manifest comes from a disk that
others can write, so `parse` believes nothing: names must match a pattern, numbers must be in
range, and what a pack must hold is known before anything is allocated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
import xxhash

from modalkit.checkpoint import bulk
from modalkit.errors import CheckpointCorruptError

VERSION: Final = 1
"""Of the format. A reader refuses what it does not know, and falls back to the one before."""

MAX_MANIFEST_BYTES: Final = 256 * 2**20
"""About a million tensors; a larger file is not ours."""

MAX_DIMENSIONS: Final = 64
"""torch and numpy both stop there."""

MANIFEST_NAME: Final = re.compile(r"ckpt-(\d{10,18})-([A-Za-z0-9_-]{1,128})-([0-9a-f]{8})\.json")
PACK_NAME: Final = re.compile(r"pack-(\d{10,18})-([A-Za-z0-9_-]{1,128})-[0-9a-f]{8}\.safetensors")

_DIGEST: Final = re.compile(r"[0-9a-f]{32}")


@attrs.frozen
class Pack:
    """A pack file that a manifest needs."""

    name: str
    bytes: int


@attrs.frozen
class Row:
    """One leaf of the state: what it is, and where its bytes lie."""

    name: str
    kind: bulk.Kind
    dtype: str
    shape: tuple[int, ...]
    pack: int
    """Index into the manifest's packs."""
    offset: int
    """From the start of the pack file."""
    length: int
    digest: str
    """xxh3-128 of the bytes."""


@attrs.frozen(kw_only=True)
class Manifest:
    """The commit record of one checkpoint."""

    step: int
    """Steps done."""
    epoch: int
    """Number of the attempt that wrote it: the fencing token."""
    serial: int
    """Tells two checkpoints of one attempt at one step apart: the higher is the later."""
    writer: str
    packs: tuple[Pack, ...]
    rows: tuple[Row, ...]
    alias: Mapping[str, str]
    """Leaves that share another's memory (tied weights), by the name of the stored one."""
    tree: Any
    """The skeleton, see `modalkit.checkpoint.tree`."""

    def to_bytes(self) -> bytes:
        """Return the file's content, checksum included."""
        body = {
            "v": VERSION,
            "step": self.step,
            "epoch": self.epoch,
            "serial": self.serial,
            "writer": self.writer,
            "packs": [attrs.asdict(pack) for pack in self.packs],
            "tensors": [attrs.asdict(row) for row in self.rows],
            "alias": dict(self.alias),
            "tree": self.tree,
        }
        text = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        return text + b"\n" + xxhash.xxh3_128_hexdigest(text).encode() + b"\n"


def parse(content: bytes) -> Manifest:
    """
    Return the manifest in *content*, checked in all that does not need the packs.

    Raises:
        CheckpointCorruptError: It is torn or altered, of another format version, or has values
            that modalkit never writes.
    """
    body, _, checksum = content.rstrip(b"\n").rpartition(b"\n")
    if xxhash.xxh3_128_hexdigest(body).encode() != checksum:
        raise CheckpointCorruptError("the manifest's checksum does not match its content")
    try:
        data = json.loads(body)
        if data["v"] != VERSION:
            raise CheckpointCorruptError(
                f"format version {data['v']!r}, and this modalkit reads only {VERSION}"
            )
        return _from_json(data)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorruptError(f"not a manifest that modalkit writes ({error!r})") from error


def _from_json(data: Mapping[str, Any]) -> Manifest:
    packs = tuple(
        Pack(_matching(PACK_NAME, p["name"]), _natural(p["bytes"])) for p in data["packs"]
    )
    rows = tuple(_row(row, packs) for row in data["tensors"])
    _check_no_overlap(rows)
    names = {row.name for row in rows}
    if len(names) != len(rows) or not names.issuperset(data["alias"].values()):
        raise ValueError("names of tensors are not unique, or an alias has no target")
    return Manifest(
        step=_natural(data["step"]),
        epoch=_natural(data["epoch"]),
        serial=_natural(data["serial"]),
        writer=_string(data["writer"]),
        packs=packs,
        rows=rows,
        alias=data["alias"],
        tree=data["tree"],
    )


def _row(data: Mapping[str, Any], packs: tuple[Pack, ...]) -> Row:
    shape = tuple(_natural(size) for size in data["shape"])
    if data["kind"] not in ("tensor", "array", "bytes") or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{data['kind']!r} of {len(shape)} dimensions")
    row = Row(
        name=_string(data["name"]),
        kind=data["kind"],
        dtype=bulk.check_dtype(data["dtype"]),
        shape=shape,
        pack=_natural(data["pack"]),
        offset=_natural(data["offset"]),
        length=_natural(data["length"]),
        digest=_matching(_DIGEST, data["digest"]),
    )
    if row.length != bulk.nbytes(row.dtype, shape):
        raise ValueError(f"{row.name}: {row.length} bytes for {row.dtype} {list(shape)}")
    if row.pack >= len(packs) or row.offset + row.length > packs[row.pack].bytes:
        raise ValueError(f"{row.name}: outside its pack")
    return row


def _check_no_overlap(rows: tuple[Row, ...]) -> None:
    """Refuse rows that share bytes: they could ask for far more memory than the packs hold."""
    ends: dict[int, int] = {}
    for row in sorted(rows, key=lambda row: row.offset):
        if row.offset < ends.get(row.pack, 0) and row.length:
            raise ValueError(f"{row.name}: its bytes are another's too")
        ends[row.pack] = max(ends.get(row.pack, 0), row.offset + row.length)


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a natural number")
    return value


def _string(value: object) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is not a string")
    return value


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not pattern.fullmatch(_string(value)):
        raise ValueError(f"{value!r} is not a name that modalkit gives")
    return str(value)
