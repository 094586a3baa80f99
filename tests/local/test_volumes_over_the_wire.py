"""Volumes as the real client and the `modal volume` commands see them."""

import io
import json
from pathlib import Path
from typing import Any

import modal
import pytest

from modalkit.local import LocalPlane
from tests.support.profiles import READINGS

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


def peer(client: modal.Client, name: str) -> Any:
    return modal.Cls.from_name("volumes", "Peer", client=client)(name=name)


def function(client: modal.Client, name: str) -> modal.Function:
    return modal.Function.from_name("volumes", name, client=client)


@pytest.fixture(scope="module")
def app(plane: LocalPlane, client: modal.Client) -> modal.Client:
    plane.deploy(str(APPS / "volumes.py"))
    return client


def test_reload_is_refused_while_files_are_open_and_names_them(app: modal.Client) -> None:
    """In the words that modal's client uses for it."""
    said = peer(app, "opener").try_with_open_files.remote("reload", "held.txt", "other.txt")
    assert said == (
        "there are open files preventing the operation: "
        "path held.txt is open; path other.txt is open"
    )


def test_a_file_open_in_a_volume_mounted_inside_hinders_no_reload_of_the_outer_one(
    app: modal.Client,
) -> None:
    nested = function(app, "reload_around")
    assert nested.remote("outer") == "done"
    assert "path held.txt is open" in nested.remote("inner")


@pytest.mark.skipif(READINGS.commit_reload != "skipped", reason="another reading of it")
def test_commit_with_an_open_file_goes_through_where_the_server_skips_the_reload(
    app: modal.Client,
) -> None:
    assert peer(app, "opener").try_with_open_files.remote("commit", "held.txt") == "done"


def test_views_are_private_until_commit_and_reload(app: modal.Client) -> None:
    writer, reader = peer(app, "writer"), peer(app, "reader")
    assert reader.read.remote("news.txt") is None
    writer.write.remote("news.txt", "first")
    assert reader.read.remote("news.txt") is None
    writer.commit.remote()
    assert reader.read.remote("news.txt") is None
    reader.reload.remote()
    assert reader.read.remote("news.txt") == "first"


def test_a_read_only_mount_refuses_writes(app: modal.Client) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        function(app, "write_read_only").remote()


def test_a_sub_path_is_made_and_mounted_alone(plane: LocalPlane, app: modal.Client) -> None:
    write = function(app, "write_part")
    write.remote("a")
    assert write.remote("b") == ["a", "b"]
    assert (plane.volume("shared").committed() / "users/me/a").read_text() == "a"


def test_a_missing_sub_path_of_a_read_only_mount_is_empty_and_not_made(
    plane: LocalPlane, app: modal.Client
) -> None:
    assert function(app, "list_missing_part").remote() == []
    assert not (plane.volume("shared").committed() / "not").exists()


def test_what_a_kill_would_lose_is_named(plane: LocalPlane, app: modal.Client) -> None:
    """Added, changed and removed paths, until they are committed; then a kill loses nothing."""
    someone = peer(app, "loser")
    for name in ("changed", "kept"):
        someone.write.remote(f"loses-{name}", "1")
    someone.commit.remote()
    someone.write.remote("loses-changed", "2")
    someone.write.remote("loses-added", "1")
    lost = ["loses-added", "loses-changed"]
    [owner] = [i for i, paths in plane.volume("shared").uncommitted().items() if paths == lost]
    plane.kill(owner)
    plane.wait_for(lambda found: not any(c.is_alive for c in found if c.id == owner))
    assert owner not in plane.volume("shared").uncommitted()
    assert someone.read.remote("loses-added") is None
    assert [someone.read.remote(f"loses-{name}") for name in ("changed", "kept")] == ["1", "1"]


def test_a_volume_that_is_not_mounted_can_be_read_but_not_committed(
    client: modal.Client, app: modal.Client
) -> None:
    other = modal.Volume.from_name("unmounted", create_if_missing=True, client=client)
    with other.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(b"content"), "/x")
    content, refusals = function(app, "use_unmounted").remote("unmounted")
    assert content == b"content"
    assert refusals == ["the Volume 'unmounted' is not mounted in this container"] * 2


def test_a_volume_can_be_an_argument(client: modal.Client, app: modal.Client) -> None:
    with modal.Volume.ephemeral(client=client) as volume:
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"content"), "/x")
        assert function(app, "read_handle").remote(volume) == b"content"


@pytest.mark.parametrize("version", [1, 2])
def test_directories_are_uploaded_and_files_copied_as_by_cp(
    client: modal.Client, tmp_path: Path, version: int
) -> None:
    name = f"copies-{version}"
    volume = modal.Volume.from_name(name, create_if_missing=True, version=version, client=client)
    (tmp_path / "d/e").mkdir(parents=True)
    for path in ("d/a", "d/e/b"):
        (tmp_path / path).write_text(path)
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "d", "/d")
        batch.put_directory(str(tmp_path / "d"), "/flat", recursive=False)
    volume.copy_files(["d/a"], "a-again")
    volume.copy_files(["a-again", "d/e/b"], "flat")
    assert sorted(entry.path for entry in volume.listdir("/", recursive=True)) == [
        *("a-again", "d", "d/a", "d/e", "d/e/b", "flat", "flat/a", "flat/a-again", "flat/b")
    ]
    into = io.BytesIO()
    assert volume.read_file_into_fileobj("flat/b", into) == len(b"d/e/b")
    assert into.getvalue() == b"d/e/b"
    with pytest.raises(modal.exception.NotFoundError, match="No such file or directory: none"):
        volume.copy_files(["none"], "x")
    with pytest.raises(modal.exception.NotFoundError, match="No such directory: nowhere/"):
        volume.copy_files(["a-again"], "nowhere/")
    with pytest.raises(modal.exception.InvalidError, match="d is a directory"):
        volume.copy_files(["d"], "x")
    with pytest.raises(modal.exception.InvalidError, match="leads out of the Volume"):
        volume.copy_files(["a-again"], "../x")
    if version == 2:
        volume.copy_files(["d"], "whole", recursive=True)
        assert b"".join(volume.read_file("whole/e/b")) == b"d/e/b"
        with pytest.raises(modal.exception.InvalidError, match="cannot copy the directory"):
            volume.copy_files(["d"], "d/e/again", recursive=True)


def test_a_renamed_volume_keeps_its_id_and_files(client: modal.Client) -> None:
    volume = modal.Volume.from_name("before", create_if_missing=True, client=client).hydrate()
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"x"), "/x")
    modal.Volume.rename("before", "after", client=client)
    after = modal.Volume.from_name("after", client=client).hydrate()
    assert after.object_id == volume.object_id
    assert after.info().name == "after"
    assert b"".join(after.read_file("x")) == b"x"
    again = modal.Volume.from_name("before", create_if_missing=True, client=client)
    assert again.listdir("/") == []
    with pytest.raises(modal.exception.AlreadyExistsError, match="'before' already exists"):
        modal.Volume.rename("after", "before", client=client)


def test_a_volume_that_is_made_anew_is_not_the_one_that_the_app_mounts(
    plane: LocalPlane, tmp_path: Path
) -> None:
    """The id is resolved at the deploy, as on Modal: running and new containers fail."""
    source = (APPS / "volumes.py").read_text().replace('"volumes"', '"orphans"')
    (tmp_path / "orphans.py").write_text(source.replace('"shared"', '"orphaned"'))
    plane.deploy(str(tmp_path / "orphans.py"))
    client = plane.client()
    someone = modal.Cls.from_name("orphans", "Peer", client=client)(name="someone")
    someone.write.remote("x", "1")
    modal.Volume.objects.delete("orphaned", client=client)
    modal.Volume.objects.create("orphaned", client=client)
    with pytest.raises(RuntimeError, match="no Volume has the id vo-"):
        someone.commit.remote()
    late = modal.Cls.from_name("orphans", "Peer", client=client)(name="late")
    with pytest.raises(modal.exception.Error, match=r"was deleted; .* deploy it again"):
        late.read.remote("x")


@pytest.mark.slow
def test_all_volume_commands_of_modal_work(plane: LocalPlane, tmp_path: Path) -> None:
    """All but `dashboard`, which opens a page of Modal's."""

    def volume(*arguments: str) -> str:
        return str(plane.modal("volume", *arguments, capture=True).stdout)

    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("content")
    volume("create", "commands", "--version", "2")
    volume("put", "commands", str(tmp_path / "d"), "d")
    volume("cp", "-r", "commands", "d", "copy")
    assert json.loads(volume("ls", "commands", "copy", "--json"))[0]["filename"] == "copy/f"
    (tmp_path / "back").mkdir()
    volume("get", "commands", "copy", str(tmp_path / "back"))
    assert [p.read_text() for p in (tmp_path / "back").rglob("f")] == ["content"]
    volume("rm", "-r", "commands", "d")
    volume("rename", "--yes", "commands", "renamed")
    assert "renamed" in [v["name"] for v in json.loads(volume("list", "--json"))]
    assert [p.name for p in plane.volume("renamed").committed().iterdir()] == ["copy"]
    volume("delete", "--yes", "renamed")
    assert "renamed" not in volume("list", "--json")
    gone = plane.modal("volume", "ls", "renamed", capture=True, check=False)
    assert gone.returncode != 0
    assert "not found" in gone.stderr + gone.stdout
