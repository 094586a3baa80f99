"""The Volume RPCs that need no container; the rest is in test_volumes_over_the_wire."""

import asyncio
import hashlib
import io
from pathlib import Path

import modal
import pytest
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local import LocalPlane
from modalkit.local.blobs import whole
from modalkit.local.services.uploads import UploadService
from modalkit.local.volume_service import VolumeService
from modalkit.local.volumes import DELETED, VolumeRegistry


class Parts:
    """What the service needs of a plane."""

    def __init__(self, root: Path) -> None:
        self.volumes = VolumeRegistry(root / "volumes")
        self.file_store = self.blob_store = root

    def blob_url(self, relative: str) -> str:
        return relative


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


def test_parts_of_a_file_can_be_asked_for(tmp_path) -> None:
    """Each address is one block; blocks are counted from the start of the file."""
    plane = Parts(tmp_path)
    volume = plane.volumes.get_or_create("v", 0, create=True)
    (volume.committed / "a b").write_bytes(b"x" * (20 << 20))

    request = api_pb2.VolumeGetFile2Request(
        volume_id=volume.id, path="/a b", start=(8 << 20) - 1, len=(8 << 20) + 2
    )
    service = VolumeService(plane, None)
    response = asyncio.run(service.VolumeGetFile2(request))
    assert (response.size, response.start, response.len) == (20 << 20, request.start, request.len)
    sizes = [url.rpartition("length=")[2] for url in response.get_urls]
    assert sizes == ["1", str(8 << 20), "1"]
    assert response.get_urls[0].startswith(f"volume/{volume.id}/a%20b?offset={request.start}&")


@pytest.mark.parametrize("path", ["../x", "/a/../../x"])
def test_requests_cannot_leave_the_volume(tmp_path, path) -> None:
    plane = Parts(tmp_path)
    volume = plane.volumes.get_or_create("v", 0, create=True)
    (tmp_path / "volumes/v/x").write_text("beside the tree")

    service = VolumeService(plane, None)
    file = api_pb2.MountFile(filename=path, sha256_hex=uploaded(tmp_path, b"new"))
    for call in (
        service.VolumeGetFile2(api_pb2.VolumeGetFile2Request(volume_id=volume.id, path=path)),
        service.VolumeRemoveFile(api_pb2.VolumeRemoveFileRequest(volume_id=volume.id, path=path)),
        service.VolumePutFiles(api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=[file])),
        service.VolumePutFiles2(
            api_pb2.VolumePutFiles2Request(
                volume_id=volume.id, files=[api_pb2.VolumePutFiles2Request.File(path=path)]
            )
        ),
        service.VolumeCopyFiles(
            api_pb2.VolumeCopyFilesRequest(volume_id=volume.id, src_paths=[path], dst_path="y")
        ),
        service.VolumeCopyFiles(
            api_pb2.VolumeCopyFilesRequest(volume_id=volume.id, src_paths=["/"], dst_path=path)
        ),
    ):
        with pytest.raises(GRPCError, match="leads out of the Volume"):
            asyncio.run(call)
    assert (tmp_path / "volumes/v/x").read_text() == "beside the tree"


def uploaded(root: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    (root / digest).write_bytes(data)
    return digest


@pytest.mark.parametrize("names", [["model/extra"], ["x", "x/y"]], ids=["a file", "the batch"])
def test_an_upload_below_a_file_is_refused(tmp_path: Path, names: list[str]) -> None:
    parts = Parts(tmp_path)
    volume = parts.volumes.get_or_create("data", 0, create=True)
    (volume.committed / "model").write_text("committed")
    digest = uploaded(tmp_path, b"new")
    files = [api_pb2.MountFile(filename=name, sha256_hex=digest) for name in names]
    request = api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=files)
    with pytest.raises(GRPCError, match="already exists, and is no directory"):
        asyncio.run(VolumeService(parts, None).VolumePutFiles(request))
    assert {path.name for path in volume.committed.iterdir()} == {"model"}


def test_a_file_is_not_copied_over_a_directory(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    volume = parts.volumes.get_or_create("data", 0, create=True)
    (volume.committed / "model").write_text("new")
    (volume.committed / "backup" / "model").mkdir(parents=True)
    (volume.committed / "backup" / "model" / "kept").write_text("old")
    request = api_pb2.VolumeCopyFilesRequest(
        volume_id=volume.id, src_paths=["model"], dst_path="backup"
    )
    with pytest.raises(GRPCError, match="is a directory, and model is none"):
        asyncio.run(VolumeService(parts, None).VolumeCopyFiles(request))
    assert (volume.committed / "backup" / "model" / "kept").read_text() == "old"


@pytest.mark.parametrize("name", ["../x", "0" * 63, "G" * 64])
def test_uploads_by_names_that_are_no_sha256_are_refused(tmp_path: Path, name: str) -> None:
    parts = Parts(tmp_path)
    volume = parts.volumes.get_or_create("data", 0, create=True)
    files = [api_pb2.MountFile(filename="x", sha256_hex=name)]
    request = api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=files)
    with pytest.raises(GRPCError, match="is no sha256"):
        asyncio.run(VolumeService(parts, None).VolumePutFiles(request))


def test_what_a_killed_plane_was_deleting_is_no_volume(tmp_path: Path) -> None:
    volumes = VolumeRegistry(tmp_path / "volumes")
    volume = volumes.get_or_create("data", 0, create=True)
    (volume.committed / "old").write_text("x")
    volume.root.rename(volume.root.with_name(f"{DELETED}{volume.id}"))
    again = VolumeRegistry(tmp_path / "volumes").get_or_create("data", 0, create=True)
    assert not list(again.committed.iterdir())
    assert [path.name for path in (tmp_path / "volumes").iterdir()] == [again.root.name]


def test_a_file_has_its_name_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    def write() -> None:
        with whole(tmp_path / "x") as file:
            file.write(b"a part")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write()
    assert not list(tmp_path.iterdir())


def test_an_upload_that_is_another_file_is_refused(tmp_path: Path) -> None:
    request = api_pb2.MountPutFileRequest(sha256_hex="0" * 64, data=b"a part")
    with pytest.raises(GRPCError, match="is another file"):
        asyncio.run(UploadService(Parts(tmp_path)).MountPutFile(request))
