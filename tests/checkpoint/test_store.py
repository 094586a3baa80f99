"""The store: the newest whole checkpoint is found, whatever else lies beside it."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from modalkit.checkpoint import manifest
from modalkit.checkpoint.store import Store, load_newest, read
from modalkit.errors import CheckpointCorruptError, CheckpointError


def make(directory: Path, epoch: int = 1, writer: str = "ta-1", fenced=frozenset()) -> Store:
    return Store(directory / "checkpoints", writer=writer, epoch=epoch, fenced=frozenset(fenced))


def state(step: int) -> dict:
    return {"objects": {"w": torch.full((50,), float(step))}, "values": {"extra": {"step": step}}}


def publish(directory: Path, *steps: int, **which) -> list[str]:
    return [make(directory, **which).publish(step, state(step)).file for step in steps]


def names(directory: Path) -> set[str]:
    return {path.name for path in (directory / "checkpoints").iterdir()}


def pack_of(directory: Path, file: str) -> Path:
    record = manifest.parse((directory / "checkpoints" / file).read_bytes())
    return directory / "checkpoints" / record.packs[0].name


def test_what_is_published_is_read(tmp_path):
    (file,) = publish(tmp_path, 7)
    loaded = read(tmp_path)
    assert (loaded.step, loaded.epoch, loaded.file) == (7, 1, file)
    assert loaded.values == {"extra": {"step": 7}}
    assert torch.equal(loaded.tensors["w"], state(7)["objects"]["w"])
    assert loaded.objects["w"] is loaded.tensors["w"]


def test_a_checkpoint_is_two_files_with_the_names_of_the_layout(tmp_path):
    publish(tmp_path, 7)
    patterns = r"ckpt-0000000007-ta-1-[0-9a-f]{8}\.json", r"pack-0000000007-ta-1-[0-9a-f]{8}\.safe"
    for name, pattern in zip(sorted(names(tmp_path)), patterns, strict=True):
        assert re.match(pattern, name)


def test_the_manifest_ends_with_the_checksum_of_its_body(tmp_path):
    (file,) = publish(tmp_path, 1)
    body, checksum = (tmp_path / "checkpoints" / file).read_bytes().splitlines()
    assert xxhash.xxh3_128_hexdigest(body).encode() == checksum
    data = json.loads(body)
    assert (data["v"], data["step"], data["epoch"], data["writer"]) == (1, 1, 1, "ta-1")
    (row,) = data["tensors"]
    assert (row["name"], row["dtype"], row["shape"], row["length"]) == ("w", "F32", [50], 200)


def test_a_state_without_tensors_needs_no_pack(tmp_path):
    make(tmp_path).publish(1, {"objects": {"a": {"n": 1}}, "values": {}})
    assert len(names(tmp_path)) == 1
    assert read(tmp_path).objects == {"a": {"n": 1}}


def test_tied_weights_are_stored_once_and_read_under_each_name(tmp_path):
    weight = torch.randn(1000)
    tied = {"embed": weight, "head": weight.detach(), "half": weight[:500]}
    made = make(tmp_path).publish(1, {"objects": {"model": tied}, "values": {}})
    loaded = read(tmp_path)
    assert loaded.tensors["model.embed"] is loaded.tensors["model.head"]
    assert torch.equal(loaded.tensors["model.half"], weight[:500])
    assert made.bytes < 2 * weight.nbytes + 8192, "the embedding, its half, a header"
    record = manifest.parse((tmp_path / "checkpoints" / made.file).read_bytes())
    assert record.alias == {"model.head": "model.embed"}


def test_newest_is_the_highest_epoch_then_the_highest_step(tmp_path):
    publish(tmp_path, 100, 300, 200)
    publish(tmp_path, 150, 250, epoch=2, writer="ta-2")
    for path in (tmp_path / "checkpoints").iterdir():
        # A clock that is wrong has no say.
        os.utime(path, (4e9, 4e9) if "0000000100" in path.name else (0, 0))
    assert read(tmp_path).step == 250


def test_of_two_checkpoints_of_one_step_the_later_is_the_newest(tmp_path):
    writer = make(tmp_path)
    for serial in range(8):
        newest = writer.publish(5, {"objects": {}, "values": {"serial": serial}}).file
        assert (read(tmp_path).file, read(tmp_path).values) == (newest, {"serial": serial})


def test_without_a_checkpoint_the_error_says_what_is_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in .*no manifest"):
        read(tmp_path)
    assert load_newest(tmp_path / "nowhere") == (None, ())


# ---- damage -------------------------------------------------------------------------------------


class Damaged:
    """A store with checkpoints of steps 1 and 2, the second of which the tests damage."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "checkpoints"
        self.newest = publish(directory, 1, 2)[1]
        self.manifest = self.folder / self.newest
        record = manifest.parse(self.manifest.read_bytes())
        self.pack = self.folder / record.packs[0].name

    def reason_to_fall_back(self) -> str:
        """Expect step 1 to be used, and return why step 2 was not."""
        loaded, skipped = load_newest(self.folder)
        assert loaded is not None
        assert loaded.step == 1
        assert torch.equal(loaded.tensors["w"], state(1)["objects"]["w"])
        assert [s.file for s in skipped] == [self.newest]
        return skipped[0].reason

    def forge(self, change) -> None:
        """Write a manifest that its writer meant: altered, with a checksum that holds."""
        data = json.loads(self.manifest.read_bytes().splitlines()[0])
        change(data)
        body = json.dumps(data).encode()
        self.manifest.write_bytes(body + b"\n" + xxhash.xxh3_128_hexdigest(body).encode())


@pytest.fixture
def two(tmp_path):
    return Damaged(tmp_path)


def test_a_truncated_pack_is_passed_over(two):
    content = two.pack.read_bytes()
    for size in (0, 1, 4095, 4096, 4097, len(content) - 1):
        two.pack.write_bytes(content[:size])
        expected = f"has {size} bytes, its manifest says {len(content)}"
        assert expected in two.reason_to_fall_back()


def test_a_missing_pack_is_passed_over(two):
    two.pack.unlink()
    assert "is missing" in two.reason_to_fall_back()


def test_a_flipped_bit_in_the_data_is_passed_over(two):
    content = two.pack.read_bytes()
    for position in range(4096, len(content), 17):
        changed = bytearray(content)
        changed[position] ^= 1
        two.pack.write_bytes(changed)
        assert "do not match their digest" in two.reason_to_fall_back()


def test_a_manifest_with_any_byte_changed_or_cut_is_passed_over(two):
    content = two.manifest.read_bytes()
    for position in range(0, len(content) - 1, 7):
        changed = bytearray(content)
        changed[position] ^= 1
        for damaged in (bytes(changed), content[:position]):
            two.manifest.write_bytes(damaged)
            assert two.reason_to_fall_back()


def test_what_is_in_progress_or_foreign_is_not_looked_at(two):
    newest = two.manifest.read_bytes()
    (two.folder / f".tmp-{two.newest.replace('0002', '0009')}").write_bytes(newest)
    (two.folder / "LATEST").write_text("ckpt-0000000001-ta-1-00000000.json")
    (two.folder / "ckpt-99.json").write_bytes(newest)
    (two.folder / "notes.txt").write_text("mine")
    loaded, skipped = load_newest(two.folder)
    assert loaded is not None
    assert (loaded.step, skipped) == (2, ())


HOSTILE = {
    "path": lambda d: d["packs"][0].update(name="../../etc/passwd"),
    "absolute": lambda d: d["packs"][0].update(name="/etc/passwd"),
    "other-name": lambda d: d["packs"][0].update(name="pack-1-x.safetensors"),
    "negative-offset": lambda d: d["tensors"][0].update(offset=-1),
    "past-the-end": lambda d: d["tensors"][0].update(offset=10**6),
    "huge-shape": lambda d: d["tensors"][0].update(shape=[2**62, 2**62]),
    "huge-length": lambda d: d["tensors"][0].update(shape=[2**60], length=2**62),
    "negative-shape": lambda d: d["tensors"][0].update(shape=[-50, -1]),
    "many-dimensions": lambda d: d["tensors"][0].update(shape=[50] + [1] * 100),
    "float-length": lambda d: d["tensors"][0].update(length=200.0),
    "bool-offset": lambda d: d["tensors"][0].update(offset=True),
    "dtype": lambda d: d["tensors"][0].update(dtype="O"),
    "dtype-type": lambda d: d["tensors"][0].update(dtype=["F32"]),
    "kind": lambda d: d["tensors"][0].update(kind="pickle"),
    "pack-index": lambda d: d["tensors"][0].update(pack=1),
    "digest": lambda d: d["tensors"][0].update(digest="0"),
    "overlap": lambda d: d["tensors"].append({**d["tensors"][0], "name": "again"}),
    "same-name": lambda d: d["tensors"].append({**d["tensors"][0], "length": 0, "shape": [0]}),
    "alias-to-nothing": lambda d: d["alias"].update(x="y"),
    "alias-type": lambda d: d.update(alias=[1]),
    "tree": lambda d: d.update(tree={"objects": 1}),
    "tree-leaf": lambda d: d["tree"].update(objects={"w": {"$bulk": "gone"}}),
    "version": lambda d: d.update(v=2),
    "step-of-another": lambda d: d.update(step=10**9),
    "step-type": lambda d: d.update(step="2"),
    "missing": lambda d: d.pop("tensors"),
    "rows-type": lambda d: d.update(tensors=[1]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_forged_manifest_is_passed_over_before_anything_is_allocated(two, change):
    two.forge(change)
    assert two.reason_to_fall_back()


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\x80\x04\x95pickle", b"[" * 100_000, b"{}", b"null"],
    ids=["empty", "newline", "pickle", "deep", "object", "null"],
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_manifest_that_is_something_else_is_corrupt(content, signed):
    whole = content + b"\n" + xxhash.xxh3_128_hexdigest(content).encode() if signed else content
    with pytest.raises(CheckpointCorruptError):
        manifest.parse(whole)


def test_a_manifest_that_is_too_large_is_not_read(two, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 10)
    loaded, skipped = load_newest(two.folder)
    assert loaded is None
    assert "bytes is not ours" in skipped[0].reason


@given(data=st.data())
def test_whatever_a_commit_publishes_of_a_tree_the_newest_whole_one_is_found(
    tmp_path_factory, data
):
    """A commit in the background may catch some files, in any order, and some of them in part."""
    directory = tmp_path_factory.mktemp("run")
    whole = []
    for step, file in zip((1, 2, 3), publish(directory, 1, 2, 3), strict=True):
        fates = []
        for path in (directory / "checkpoints" / file, pack_of(directory, file)):
            fate = data.draw(st.sampled_from(["whole", "missing", "cut", "zeroed"]))
            content = path.read_bytes()
            if fate == "missing":
                path.unlink()
            elif fate == "cut":
                path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
            elif fate == "zeroed":
                path.write_bytes(content[:-64] + bytes(64))
            fates.append(fate)
            if fate != "whole":
                break
        if fates == ["whole", "whole"]:
            whole.append(step)
    loaded, _ = load_newest(directory / "checkpoints")
    assert (loaded.step if loaded else None) == max(whole, default=None)


# ---- a disk that refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_failed_write_leaves_the_ones_before_and_no_litter(tmp_path, monkeypatch, call, number):
    (first,) = publish(tmp_path, 1)
    before = names(tmp_path)
    seen = []

    def refuse(*arguments):
        seen.append(1)
        if len(seen) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    if call == "write":
        from modalkit.checkpoint import pack, store

        target, name = [(pack, "write_pack"), (store, "_write_file")][number - 1]
        number = 1
    else:
        target, name = {"fsync": (os, "fsync"), "rename": (Path, "rename")}[call]
    real = getattr(target, name)
    monkeypatch.setattr(target, name, refuse)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .*No space left"):
        publish(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == before
    assert read(tmp_path).file == first
    publish(tmp_path, 3)
    assert read(tmp_path).step == 3


def test_a_directory_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **more):
        if Path(path).is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    publish(tmp_path, 1)
    assert read(tmp_path).step == 1


# ---- retention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_prune_keeps_the_newest(tmp_path, keep_last):
    files = publish(tmp_path, 1, 2, 3, 4)
    make(tmp_path).prune(keep_last)
    assert {n for n in names(tmp_path) if n.startswith("ckpt-")} == set(files[-keep_last:])
    assert len(names(tmp_path)) == 2 * keep_last
    assert read(tmp_path).step == 4


def test_prune_removes_manifests_before_packs(tmp_path, monkeypatch):
    publish(tmp_path, 1, 2, 3)
    removed: list[str] = []
    real = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda self, **k: (removed.append(self.name), real(self, **k))[1]
    )
    make(tmp_path).prune(1)
    assert [name[:4] for name in removed] == ["ckpt", "ckpt", "pack", "pack"]


def test_prune_does_not_count_what_is_torn(tmp_path):
    files = publish(tmp_path, 1, 2, 3)
    pack_of(tmp_path, files[2]).write_bytes(b"torn")
    (tmp_path / "checkpoints" / files[1]).write_bytes(b"torn")
    make(tmp_path).prune(1)
    assert read(tmp_path).step == 1, "the only whole one stays"


def test_prune_removes_nothing_of_a_later_attempt(tmp_path):
    later = publish(tmp_path, 10, 20, epoch=2, writer="ta-2")
    publish(tmp_path, 11, 21, 31)
    make(tmp_path).prune(1)
    assert {n for n in names(tmp_path) if n.startswith("ckpt-")} == set(later)
    assert read(tmp_path).step == 20


def test_what_an_earlier_attempt_left_unfinished_is_swept(tmp_path):
    publish(tmp_path, 1, 2, epoch=2, writer="ta-2")
    folder = tmp_path / "checkpoints"
    litter = {
        ".tmp-pack-0000000003-ta-1-00000000.safetensors",
        ".tmp-ckpt-0000000003-ta-1-00000000.json",
        "pack-0000000003-ta-1-00000000.safetensors",
        "ckpt-0000000003-ta-1-00000000.json",
    }
    not_ours = {name.replace("ta-1", "ta-3") for name in litter} | {"notes.txt", ".tmp-else"}
    for name in litter | not_ours:
        (folder / name).write_bytes(b"half")
    removed = make(tmp_path, epoch=2, writer="ta-2", fenced={"ta-1"}).prune(3)
    assert set(removed) == litter
    assert not_ours <= names(tmp_path)
    assert read(tmp_path).step == 2


@given(
    saves=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 30), st.booleans()), min_size=1, max_size=12
    )
)
def test_two_writers_never_damage_each_other(tmp_path_factory, saves):
    """Attempts save and prune in any order, zombies included; each is whole, the best survives."""
    directory = tmp_path_factory.mktemp("run")
    best = (0, 0)
    for epoch, step, prunes in saves:
        fenced = {f"ta-{earlier}" for earlier in range(1, epoch)}
        writer = make(directory, epoch=epoch, writer=f"ta-{epoch}", fenced=fenced)
        writer.publish(step, state(step))
        best = max(best, (epoch, step))
        if prunes:
            writer.prune(1)
        loaded, skipped = load_newest(directory / "checkpoints")
        assert loaded is not None
        assert not skipped
        assert (loaded.epoch, loaded.step) == best
        assert loaded.values["extra"]["step"] == loaded.step


def manifests(directory: Path) -> set[str]:
    return {name for name in names(directory) if name.startswith("ckpt-")}


def flip(directory: Path, file: str) -> None:
    """Damage a checkpoint such that only its digests show it."""
    path = pack_of(directory, file)
    content = bytearray(path.read_bytes())
    content[4096] ^= 1
    path.write_bytes(content)


def resume(directory: Path, epoch: int = 2) -> Store:
    loaded, skipped = load_newest(directory / "checkpoints")
    return Store(
        directory / "checkpoints",
        writer=f"ta-{epoch}",
        epoch=epoch,
        fenced=frozenset({"ta-1"}),
        restored=loaded.file,
        rejected=frozenset(each.file for each in skipped),
    )


def test_what_was_restored_stays_until_a_save_has_taken_its_place(tmp_path):
    good, bad = publish(tmp_path, 2, 4)
    flip(tmp_path, bad)
    store = resume(tmp_path)
    store.prune(1)
    assert good in names(tmp_path)
    assert read(tmp_path).step == 2
    own = store.publish(3, state(3)).file
    store.prune(1)
    assert manifests(tmp_path) == {own}
    assert len(names(tmp_path)) == 2, "packs go with their manifests"


def test_what_was_restored_stays_while_files_of_unknown_worth_are_newer(tmp_path):
    """A second attempt at the same epoch came to other verdicts; the one in memory counts."""
    good, newer = publish(tmp_path, 2, 4)
    store = Store(tmp_path / "checkpoints", writer="ta-2", epoch=2, restored=good)
    store.prune(1)
    assert manifests(tmp_path) == {good, newer}


def test_rejected_files_do_not_count_as_usable(tmp_path):
    one, two, three = publish(tmp_path, 1, 2, 3)
    flip(tmp_path, three)
    resume(tmp_path).prune(2)
    assert {one, two} <= manifests(tmp_path)


def test_a_store_never_prunes_its_own_newest(tmp_path):
    publish(tmp_path, 9, epoch=5, writer="ta-5")
    store = make(tmp_path)
    own = [store.publish(step, state(step)).file for step in (1, 2)][-1]
    store.prune(1)
    assert own in names(tmp_path)


@pytest.mark.parametrize("call", ["stat", "read_bytes"])
def test_a_passing_failure_to_read_prunes_nothing(tmp_path, monkeypatch, call):
    publish(tmp_path, 1, 2, 3)
    before = names(tmp_path)
    store = make(tmp_path, epoch=2, writer="ta-2", fenced={"ta-1"})
    real = getattr(Path, call)

    def refuse(self, *arguments, **more):
        if "0000000003" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(OSError, match="Input/output"):
        store.prune(1)
    monkeypatch.undo()
    assert names(tmp_path) == before


def test_a_file_that_cannot_be_removed_keeps_its_pack_and_stops_no_other(tmp_path, monkeypatch):
    stuck, _, last = publish(tmp_path, 1, 2, 3)
    real = Path.unlink

    def refuse(self, **more):
        if self.name == stuck:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(self, **more)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        make(tmp_path).prune(1)
    assert manifests(tmp_path) == {stuck, last}
    assert pack_of(tmp_path, stuck).exists()


def test_only_a_full_disk_is_called_full(tmp_path, monkeypatch):
    for number, is_full in ((errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)):

        def refuse(*_: object, number=number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(CheckpointError) as caught:
            publish(tmp_path, 1)
        assert ("keep_last" in str(caught.value)) == is_full
