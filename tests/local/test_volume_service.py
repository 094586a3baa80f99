"""The Volume RPCs that need no container; the rest is in test_volumes_over_the_wire."""

import io
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane
from modalkit.local.volumes import DELETED, VolumeRegistry


@pytest.fixture
def second(client: modal.Client) -> modal.Volume:
    return modal.Volume.from_name("second", create_if_missing=True, version=2, client=client)


def test_version_2_volumes_take_uploads_by_block(second: modal.Volume, plane: LocalPlane) -> None:
    """Blocks of 8 MiB, with the zeros at a block's end left out by the client."""
    large = bytes(9 << 20) + b"end" + bytes(100)
    with second.batch_upload() as batch:
        batch.put_file(io.BytesIO(large), "/d/large.bin")
        batch.put_file(io.BytesIO(b"small"), "/small", mode=0o600)
        batch.put_file(io.BytesIO(b""), "/empty")
    tree = plane.volume("second").committed()
    assert (tree / "d/large.bin").read_bytes() == large == b"".join(second.read_file("d/large.bin"))
    assert (tree / "small").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError), second.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"again"), "/small")
    second.remove_file("/d", recursive=True)
    assert sorted(entry.path for entry in second.iterdir("/")) == ["empty", "small"]


def test_a_volume_of_another_version_is_refused_by_the_client(
    second: modal.Volume, client: modal.Client
) -> None:
    second.hydrate()
    with pytest.raises(modal.exception.InvalidError, match="exists but has version v2"):
        modal.Volume.from_name("second", version=1, client=client).hydrate()


def test_volumes_are_listed_the_newest_first_and_deleted(client: modal.Client) -> None:
    for name in ("list-a", "list-b"):
        modal.Volume.objects.create(name, client=client)
    names = [volume.name for volume in modal.Volume.objects.list(client=client)]
    assert names.index("list-b") < names.index("list-a")
    assert [v.name for v in modal.Volume.objects.list(max_objects=1, client=client)] == ["list-b"]
    modal.Volume.objects.delete("list-b", client=client)
    with pytest.raises(modal.exception.NotFoundError, match="'list-b' not found"):
        modal.Volume.from_name("list-b", client=client).hydrate()
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Volume.objects.create("list-a", client=client)


def test_ephemeral_volumes_and_ids(client: modal.Client) -> None:
    with modal.Volume.ephemeral(client=client) as volume:
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"x"), "/x")
        again = modal.Volume.from_id(volume.object_id, client=client)
        assert b"".join(again.read_file("x")) == b"x"
    with pytest.raises(modal.exception.NotFoundError):
        modal.Volume.from_id("vo-none", client=client).hydrate()


def test_what_a_killed_plane_was_deleting_is_no_volume(tmp_path: Path) -> None:
    volumes = VolumeRegistry(tmp_path / "volumes")
    volume = volumes.get_or_create("data", 0, create=True)
    (volume.committed / "old").write_text("x")
    volume.root.rename(volume.root.with_name(f"{DELETED}{volume.id}"))
    again = VolumeRegistry(tmp_path / "volumes").get_or_create("data", 0, create=True)
    assert not list(again.committed.iterdir())
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [again.root.name]
