"""Volumes as the real client and the `modal volume` commands see them."""

import io
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane

from .conftest import APPS


def test_uploads_can_be_listed_and_read_back(plane: LocalPlane, client: modal.Client) -> None:
    volume = modal.Volume.from_name("uploads", create_if_missing=True, client=client)
    large = bytes(range(256)) * (36 << 10)  # 9 MiB: two blocks
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"small"), "/a/small.txt")
        batch.put_file(io.BytesIO(large), "/large.bin")
    assert sorted(entry.path for entry in volume.iterdir("/", recursive=True)) == [
        "a",
        "a/small.txt",
        "large.bin",
    ]
    assert b"".join(volume.read_file("large.bin")) == large
    assert (plane.volume("uploads").committed() / "a" / "small.txt").read_bytes() == b"small"


def test_an_upload_does_not_overwrite_unless_it_is_told_to(client: modal.Client) -> None:
    volume = modal.Volume.from_name("overwrite", create_if_missing=True, client=client)
    for force in (False, True):
        with volume.batch_upload(force=force) as batch:
            batch.put_file(io.BytesIO(str(force).encode()), "/x")
    with pytest.raises(FileExistsError), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"again"), "/x")
    assert b"".join(volume.read_file("x")) == b"True"


def test_the_volume_commands_of_modal_work(plane: LocalPlane, tmp_path: Path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"w" * 1000)
    plane.modal("volume", "create", "cli", capture=True)
    plane.modal("volume", "put", "cli", str(source), "dir/weights.bin", capture=True)
    assert "dir/weights.bin" in plane.modal("volume", "ls", "cli", "dir", capture=True).stdout
    target = tmp_path / "back.bin"
    plane.modal("volume", "get", "cli", "dir/weights.bin", str(target), capture=True)
    assert target.read_bytes() == source.read_bytes()
    plane.modal("volume", "rm", "cli", "dir/weights.bin", capture=True)
    assert not (plane.volume("cli").committed() / "dir" / "weights.bin").exists()
    assert "cli" in plane.modal("volume", "list", capture=True).stdout


def test_a_missing_volume_is_not_found(client: modal.Client) -> None:
    with pytest.raises(modal.exception.NotFoundError, match="nowhere"):
        list(modal.Volume.from_name("nowhere", client=client).listdir("/"))


def test_reload_is_refused_while_a_file_is_open_and_names_it(
    plane: LocalPlane, client: modal.Client
) -> None:
    plane.deploy(str(APPS / "volumes.py"))
    look = modal.Function.from_name("volumes", "reload_with_open_file", client=client)
    said = look.remote()
    assert "there are open files preventing the operation" in said
    assert "held.txt" in said


def test_views_are_private_until_commit_and_reload(plane: LocalPlane, client: modal.Client) -> None:
    plane.deploy(str(APPS / "volumes.py"))
    writer = modal.Cls.from_name("volumes", "Peer", client=client)(name="writer")
    reader = modal.Cls.from_name("volumes", "Peer", client=client)(name="reader")
    assert reader.read.remote("news.txt") is None
    writer.write.remote("news.txt", "first")
    assert reader.read.remote("news.txt") is None
    writer.commit.remote()
    assert reader.read.remote("news.txt") is None
    reader.reload.remote()
    assert reader.read.remote("news.txt") == "first"


def test_a_read_only_mount_refuses_writes(plane: LocalPlane, client: modal.Client) -> None:
    plane.deploy(str(APPS / "volumes.py"))
    write = modal.Function.from_name("volumes", "write_read_only", client=client)
    with pytest.raises(OSError, match="Read-only file system"):
        write.remote()
