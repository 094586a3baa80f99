"""
Checkpoints on a disk that loses whatever was not committed: publish, find, verify, prune.

    checkpoints/
      pack-<step>-<writer>-<id>.safetensors    the bytes
      ckpt-<step>-<writer>-<id>.json           the manifest, renamed last: the checkpoint exists
      .tmp-*                                   in progress, or what a killed container left

Rule 1: names are new each time, so that no writer can overwrite or tear what another wrote.
Rule 2: there is no LATEST file. The newest is the highest (epoch, step) whose manifest, sizes and
digests hold; clocks are never compared. One function, `load_newest`, decides it.
Rule 3: every file is closed when a function here returns: `Volume.commit()` and `reload()` refuse
open ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from modalkit.checkpoint import disk, manifest, pack, tree
from modalkit.checkpoint.bulk import Bulk
from modalkit.checkpoint.manifest import MANIFEST_NAME, PACK_NAME, Manifest, Pack, Row
from modalkit.errors import CheckpointCorruptError, CheckpointError

if TYPE_CHECKING:
    import torch

CHECKPOINTS: Final = "checkpoints"
"""The folder of the checkpoints in a run's directory."""

_TEMPORARY: Final = ".tmp-"

_DISK_IS_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@attrs.frozen
class Checkpoint:
    """A published checkpoint."""

    file: str
    """Name of the manifest."""
    step: int
    epoch: int
    bytes: int
    """Written for it, pack and manifest."""


@attrs.frozen
class Skipped:
    """A file that is no usable checkpoint, and why."""

    file: str
    reason: str


@attrs.frozen(eq=False)
class Loaded:
    """A verified checkpoint in memory."""

    step: int
    """Steps done."""
    epoch: int
    """Number of the attempt that wrote it."""
    file: str
    tensors: dict[str, torch.Tensor]
    """Every tensor by its name, such as `model.fc.weight`; tied ones under each name."""
    objects: dict[str, Any]
    """The state of each object, by the name it was passed under."""
    values: dict[str, Any]
    """What the run keeps besides: random generators, `extra`, last metrics."""


def read(run_directory: Path | str) -> Loaded:
    """
    Return the newest valid checkpoint of a run, without the live objects it came from.

    Args:
        run_directory: `<mount>/runs/<run_id>`.

    Raises:
        CheckpointError: There is none; the message says what was found instead.
    """
    directory = Path(run_directory) / CHECKPOINTS
    loaded, skipped = load_newest(directory)
    if loaded is None:
        found = "; ".join(f"{s.file}: {s.reason}" for s in skipped) or "no manifest"
        raise CheckpointError(
            f"no valid checkpoint in {directory} ({found}). Check the run id, and reload the "
            f"Volume if another container wrote it."
        )
    return loaded


def load_newest(directory: Path) -> tuple[Loaded | None, tuple[Skipped, ...]]:
    """
    Return the newest checkpoint that is whole, and what was passed over to find it.

    The bytes are read and verified before anything is returned, so a caller changes live objects
    only with a state that is known to be good.
    """
    found, skipped = _manifests(directory)
    for file, record in sorted(found.items(), key=_age, reverse=True):
        try:
            return _load(directory, file, record), tuple(skipped)
        except CheckpointCorruptError as error:
            skipped.append(Skipped(file, str(error)))
    return None, tuple(skipped)


class Store:
    """
    The checkpoints of one run, as one attempt writes them.

    Args:
        directory: `<run>/checkpoints`; made at the first `publish`.
        writer: The container, part of every file name.
        epoch: Number of the attempt: higher ones win, and are never pruned by lower ones.
        fenced: Writers of earlier attempts. Whatever they left unfinished may be swept: should
            one of them still run, it has been replaced.
        restored: The manifest that the attempt resumed from. It stays until a checkpoint of this
            attempt has taken its place.
        rejected: Manifests that were newer and not whole. Sizes do not show what digests did, so
            they are remembered.
    """

    def __init__(
        self,
        directory: Path,
        *,
        writer: str,
        epoch: int,
        fenced: frozenset[str] = frozenset(),
        restored: str | None = None,
        rejected: frozenset[str] = frozenset(),
    ) -> None:
        self._directory = directory
        self._writer = writer
        self._epoch = epoch
        self._fenced = fenced - {writer}
        self._restored = restored
        self._rejected = rejected
        self._own_newest: str | None = None
        self._serial = 0

    def publish(self, step: int, state: Mapping[str, Any]) -> Checkpoint:
        """
        Write *state* as a checkpoint, which exists from the last rename on.

        Args:
            step: Steps done.
            state: `objects` and `values`, see `Loaded`; copied before anything is written.

        Raises:
            CheckpointError: A value cannot be stored, or the disk refused; nothing is left behind.
        """
        leaves = tree.Leaves()
        skeleton = {
            "objects": _flatten_each(state["objects"], "", leaves),
            "values": _flatten_each(state["values"], "run.", leaves),
        }
        copies, alias = pack.copy_leaves(leaves)
        try:
            published = self._write(step, skeleton, copies, alias)
        except OSError as error:
            is_full = error.errno in _DISK_IS_FULL
            remedy = " Raise ephemeral_disk, or lower keep_last." if is_full else ""
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self._directory}: "
                f"{error}. The ones before are untouched.{remedy}"
            ) from error
        self._own_newest = published.file
        return published

    def withdraw(self) -> None:
        """Remove all that this attempt has published, which must not become the run's state."""
        own = [n for n in _names(self._directory) if f"-{self._writer}-" in n]
        for name in sorted(own):  # manifests come first
            self._path(name).unlink(missing_ok=True)

    def prune(self, keep_last: int) -> list[str]:
        """
        Remove all but the newest *keep_last* checkpoints, and what earlier attempts left behind.

        To be called after a commit only: until then the newest may exist in this container alone,
        and what is removed here may be all that others could resume from.

        Returns:
            The names of the files removed.

        Raises:
            OSError: The disk did not say what is there, and nothing was removed; or it refused
                to remove a file, and the rest was removed.
        """
        found, torn = _manifests(self._directory, is_strict=True)
        doomed = self._doomed(found, torn, keep_last)
        refusals: list[OSError] = []
        # Manifests first: a pack without a manifest is litter, the reverse is a broken checkpoint.
        removed = self._unlink(doomed, refusals)
        kept = {p.name for f, m in found.items() if f not in removed for p in m.packs}
        freed = {p.name for f in removed if f in found for p in found[f].packs}
        litter = [n for n in _names(self._directory) if n in freed or self._is_litter(n)]
        removed += self._unlink([name for name in litter if name not in kept], refusals)
        if refusals:
            raise refusals[0]
        return removed

    def _doomed(
        self, found: Mapping[str, Manifest], torn: list[Skipped], keep_last: int
    ) -> list[str]:
        """Return the manifests to remove."""
        usable = {
            f: m
            for f, m in found.items()
            if f not in self._rejected and _sizes_hold(self._directory, m)
        }
        has_own = self._own_newest in usable
        needed = {self._own_newest if has_own else self._restored}
        older = [f for f, _ in sorted(usable.items(), key=_age)[:-keep_last]]
        doomed = [f for f in older if found[f].epoch <= self._epoch and f not in needed]
        doomed += [s.file for s in torn if self._is_fenced(s.file)]
        # What could not be read once may be whole after all: it goes when it is not needed.
        is_over = {f for f in found if f not in self._rejected or has_own}
        doomed += [f for f in found if f not in usable and f in is_over and self._is_fenced(f)]
        return doomed

    def _unlink(self, names: list[str], refusals: list[OSError]) -> list[str]:
        removed = []
        for name in names:
            try:
                self._path(name).unlink(missing_ok=True)
                removed.append(name)
            except OSError as error:
                refusals.append(error)
        return removed

    def _write(
        self, step: int, skeleton: Any, copies: Mapping[str, Bulk], alias: Mapping[str, str]
    ) -> Checkpoint:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._serial += 1
        tag = f"{step:010d}-{self._writer}-{secrets.token_hex(4)}"
        bytes_name, manifest_name = f"pack-{tag}.safetensors", f"ckpt-{tag}.json"
        with self._removed_on_failure(bytes_name, manifest_name):
            packs: tuple[Pack, ...] = ()
            rows: list[Row] = []
            if copies:
                rows = pack.write_pack(self._path(_TEMPORARY + bytes_name), copies)
                size = self._path(_TEMPORARY + bytes_name).stat().st_size
                packs = (Pack(bytes_name, size),)
            content = Manifest(
                step=step,
                epoch=self._epoch,
                serial=self._serial,
                writer=self._writer,
                packs=packs,
                rows=tuple(rows),
                alias=alias,
                tree=skeleton,
            ).to_bytes()
            _write_file(self._path(_TEMPORARY + manifest_name), content)
            if copies:
                self._path(_TEMPORARY + bytes_name).rename(self._path(bytes_name))
            self._path(_TEMPORARY + manifest_name).rename(self._path(manifest_name))
        disk.sync_directory(self._directory)
        total = len(content) + sum(p.bytes for p in packs)
        return Checkpoint(manifest_name, step, self._epoch, total)

    @contextlib.contextmanager
    def _removed_on_failure(self, *names: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # Also on an interrupt: a half-written pack of 10 GB must not stay.
            for name in (*reversed(names), *(_TEMPORARY + name for name in names)):
                with contextlib.suppress(OSError):
                    self._path(name).unlink(missing_ok=True)
            raise

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _is_litter(self, name: str) -> bool:
        is_leftover = name.startswith(_TEMPORARY) or PACK_NAME.fullmatch(name) is not None
        return is_leftover and self._is_fenced(name)

    def _is_fenced(self, name: str) -> bool:
        plain = name.removeprefix(_TEMPORARY)
        match = MANIFEST_NAME.fullmatch(plain) or PACK_NAME.fullmatch(plain)
        return match is not None and match[2] in self._fenced


def _flatten_each(states: Mapping[str, Any], prefix: str, leaves: tree.Leaves) -> dict[str, Any]:
    return {name: tree.flatten(s, f"{prefix}{name}", leaves) for name, s in states.items()}


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 (names are what is wanted)
    except FileNotFoundError:
        return []


def highest_epoch(directory: Path) -> int:
    """Return the highest epoch of any manifest, whole checkpoint or not; 0 if there is none."""
    found, _ = _manifests(directory)
    return max((record.epoch for record in found.values()), default=0)


def _manifests(
    directory: Path, *, is_strict: bool = False
) -> tuple[dict[str, Manifest], list[Skipped]]:
    """Read all manifests; *is_strict* takes what a disk will not read for no damage."""
    found: dict[str, Manifest] = {}
    skipped = []
    for name in _names(directory):
        match = MANIFEST_NAME.fullmatch(name)
        if match is None:
            continue
        try:
            record = _read_manifest(directory / name)
            if record.step != int(match[1]):
                raise CheckpointCorruptError(f"its name is another step's than {record.step}")
            found[name] = record
        except CheckpointCorruptError as error:
            skipped.append(Skipped(name, str(error)))
        except OSError as error:
            if is_strict and not isinstance(error, FileNotFoundError):
                raise
            skipped.append(Skipped(name, f"the manifest cannot be read: {error}"))
    return found, skipped


def _read_manifest(path: Path) -> Manifest:
    if (size := path.stat().st_size) > manifest.MAX_MANIFEST_BYTES:
        raise CheckpointCorruptError(f"a manifest of {size} bytes is not ours")
    return manifest.parse(path.read_bytes())


def _age(item: tuple[str, Manifest]) -> tuple[int, int, int, str]:
    file, record = item
    return record.epoch, record.step, record.serial, file


def _sizes_hold(directory: Path, record: Manifest) -> bool:
    try:
        return all((directory / p.name).stat().st_size == p.bytes for p in record.packs)
    except FileNotFoundError:
        return False


def _load(directory: Path, file: str, record: Manifest) -> Loaded:
    leaves: dict[str, Any] = {}
    for index, each in enumerate(record.packs):
        _check_size(directory / each.name, each.bytes)
        rows = [row for row in record.rows if row.pack == index]
        leaves.update(pack.read_pack(directory / each.name, rows))
    leaves.update({name: leaves[target] for name, target in record.alias.items()})
    state = tree.unflatten(record.tree, leaves)
    kinds = {row.name: row.kind for row in record.rows}
    is_tensor = {name: kinds[record.alias.get(name, name)] == "tensor" for name in leaves}
    tensors = {name: leaf for name, leaf in leaves.items() if is_tensor[name]}
    return Loaded(record.step, record.epoch, file, tensors, *_parts(state))


def _parts(state: object) -> tuple[dict[str, Any], dict[str, Any]]:
    match state:
        case {"objects": dict() as objects, "values": dict() as values}:
            return objects, values
    raise CheckpointCorruptError("its tree is not one that modalkit writes")


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointCorruptError(f"{path.name} is missing: {error}") from error
    if size != expected:
        raise CheckpointCorruptError(f"{path.name} has {size} bytes, its manifest says {expected}")


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        disk.sync_file(file)
