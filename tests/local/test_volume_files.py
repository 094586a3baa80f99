"""The RPCs that read and change the committed files of a Volume, without a container."""

import asyncio
import hashlib
import resource
import urllib.parse
from pathlib import Path

import pytest
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local.blobs import whole
from modalkit.local.services.uploads import UploadService
from modalkit.local.volume_files import VolumeFileService
from modalkit.local.volumes import Volume, VolumeRegistry


class Parts:
    """What the service needs of a plane."""

    def __init__(self, root: Path) -> None:
        self.volumes = VolumeRegistry(root / "volumes")
        self.file_store = self.blob_store = root

    def blob_url(self, relative: str) -> str:
        return relative


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


@pytest.fixture
def volume(parts: Parts) -> Volume:
    return parts.volumes.get_or_create("data", 0, create=True)


def test_parts_of_a_file_can_be_asked_for(parts: Parts, volume: Volume) -> None:
    """Each address is one block; blocks are counted from the start of the file."""
    (volume.committed / "a b").write_bytes(b"x" * (20 << 20))

    request = api_pb2.VolumeGetFile2Request(
        volume_id=volume.id, path="/a b", start=(8 << 20) - 1, len=(8 << 20) + 2
    )
    service = VolumeFileService(parts)
    response = asyncio.run(service.VolumeGetFile2(request))
    assert (response.size, response.start, response.len) == (20 << 20, request.start, request.len)
    sizes = [url.rpartition("length=")[2] for url in response.get_urls]
    assert sizes == ["1", str(8 << 20), "1"]
    first = urllib.parse.urlsplit(response.get_urls[0])
    assert first.query.startswith(f"offset={request.start}&")
    held = volume.held(first.path.removeprefix(f"volume/{volume.id}/"))
    assert held.read_bytes() == (volume.committed / "a b").read_bytes()


def test_what_is_read_stays_as_it_was_when_the_file_is_replaced(volume: Volume) -> None:
    (volume.committed / "model").write_text("old")
    held = volume.hold(volume.committed / "model")
    with volume.changing(), volume.incoming() as incoming, incoming.new("model", 0o644) as file:
        file.write(b"new")
    assert volume.held(held.name).read_text() == "old"
    assert volume.hold(volume.committed / "model").read_text() == "new"


def test_what_nobody_reads_any_more_takes_no_room(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    (volume.committed / "a").write_text("a")
    (volume.committed / "b").write_text("b")
    first = volume.hold(volume.committed / "a")
    monkeypatch.setattr("modalkit.local.volumes.HELD_S", 0.0)
    volume.hold(volume.committed / "b")
    assert not first.exists()
    with pytest.raises(KeyError):
        volume.held(first.name)


@pytest.mark.parametrize("name", ["missing", "model/below", "directory"])
def test_what_is_no_file_cannot_be_read(parts: Parts, volume: Volume, name: str) -> None:
    (volume.committed / "model").write_text("x")
    (volume.committed / "directory").mkdir()
    request = api_pb2.VolumeGetFile2Request(volume_id=volume.id, path=name)
    with pytest.raises(GRPCError, match="No such file"):
        asyncio.run(VolumeFileService(parts).VolumeGetFile2(request))


def test_links_that_lead_in_circles_are_refused(parts: Parts, volume: Volume) -> None:
    (volume.committed / "a").symlink_to("b")
    (volume.committed / "b").symlink_to("a")
    request = api_pb2.VolumeGetFile2Request(volume_id=volume.id, path="a/x")
    with pytest.raises(GRPCError, match="is no path of a Volume"):
        asyncio.run(VolumeFileService(parts).VolumeGetFile2(request))


def test_uploads_that_do_not_all_fit_leave_nothing(
    parts: Parts, volume: Volume, tmp_path: Path
) -> None:
    files = [
        api_pb2.MountFile(filename=name, sha256_hex=uploaded(tmp_path, data))
        for name, data in (("small", b"1"), ("large", bytes(1 << 20)))
    ]
    request = api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=files)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            asyncio.run(VolumeFileService(parts).VolumePutFiles(request))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(volume.committed.iterdir())
    assert not list(volume.staging.iterdir())


def test_a_file_below_a_link_goes_where_the_link_leads(
    parts: Parts, volume: Volume, tmp_path: Path
) -> None:
    (volume.committed / "runs" / "7").mkdir(parents=True)
    (volume.committed / "latest").symlink_to("runs/7")
    (volume.committed / "model").write_text("copied")
    service = VolumeFileService(parts)
    file = api_pb2.MountFile(filename="latest/x/uploaded", sha256_hex=uploaded(tmp_path, b"new"))
    asyncio.run(
        service.VolumePutFiles(api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=[file]))
    )
    for target in ("latest", "latest/other"):
        request = api_pb2.VolumeCopyFilesRequest(
            volume_id=volume.id, src_paths=["model"], dst_path=target
        )
        asyncio.run(service.VolumeCopyFiles(request))
    assert (volume.committed / "latest").is_symlink()
    found = {str(p.relative_to(volume.committed)) for p in volume.committed.rglob("runs/7/**/*")}
    assert found == {"runs/7/x", "runs/7/x/uploaded", "runs/7/model", "runs/7/other"}


@pytest.mark.parametrize("path", ["../x", "/a/../../x"])
def test_requests_cannot_leave_the_volume(
    parts: Parts, volume: Volume, tmp_path: Path, path: str
) -> None:
    (tmp_path / "volumes/data/x").write_text("beside the tree")

    service = VolumeFileService(parts)
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
    assert (tmp_path / "volumes/data/x").read_text() == "beside the tree"


def uploaded(root: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    (root / digest).write_bytes(data)
    return digest


@pytest.mark.parametrize("names", [["model/extra"], ["x", "x/y"]], ids=["a file", "the batch"])
def test_an_upload_below_a_file_is_refused(
    parts: Parts, volume: Volume, tmp_path: Path, names: list[str]
) -> None:
    (volume.committed / "model").write_text("committed")
    digest = uploaded(tmp_path, b"new")
    files = [api_pb2.MountFile(filename=name, sha256_hex=digest) for name in names]
    request = api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=files)
    with pytest.raises(GRPCError, match="already exists, and is no directory"):
        asyncio.run(VolumeFileService(parts).VolumePutFiles(request))
    assert {path.name for path in volume.committed.iterdir()} == {"model"}


def test_a_file_is_not_copied_over_a_directory(parts: Parts, volume: Volume) -> None:
    (volume.committed / "model").write_text("new")
    (volume.committed / "backup" / "model").mkdir(parents=True)
    (volume.committed / "backup" / "model" / "kept").write_text("old")
    request = api_pb2.VolumeCopyFilesRequest(
        volume_id=volume.id, src_paths=["model"], dst_path="backup"
    )
    with pytest.raises(GRPCError, match="is a directory, and model is none"):
        asyncio.run(VolumeFileService(parts).VolumeCopyFiles(request))
    assert (volume.committed / "backup" / "model" / "kept").read_text() == "old"


@pytest.mark.parametrize("name", ["../x", "0" * 63, "G" * 64])
def test_uploads_by_names_that_are_no_sha256_are_refused(
    parts: Parts, volume: Volume, name: str
) -> None:
    files = [api_pb2.MountFile(filename="x", sha256_hex=name)]
    request = api_pb2.VolumePutFilesRequest(volume_id=volume.id, files=files)
    with pytest.raises(GRPCError, match="is no sha256"):
        asyncio.run(VolumeFileService(parts).VolumePutFiles(request))


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
