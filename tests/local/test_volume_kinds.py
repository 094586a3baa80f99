"""Volumes under switches, engines and conditions of their own: each has its own plane."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2

from modalkit.local import LocalPlane
from modalkit.local.views import overlay_problem
from modalkit.local.volume_service import check_mounts

from .conftest import APPS, lines

MANY = 1100


def peer(plane: LocalPlane, name: str) -> Any:
    plane.deploy(str(APPS / "volumes.py"))
    return modal.Cls.from_name("volumes", "Peer", client=plane.client())(name=name)


def wait_for_file(path: Path) -> None:
    """Fail after a minute."""
    command = f"while ! [ -e {path} ]; do sleep 0.05; done"
    subprocess.run(["timeout", "60", "sh", "-c", command], check=True)


# ---------------------------------------------------------------------------- switches


def test_commit_with_an_open_file_raises_after_it_has_committed_where_the_server_reloads() -> None:
    with LocalPlane(engine="inline", profile="lenient,commit_reload=done") as plane:
        said = peer(plane, "opener").try_with_open_files.remote("commit", "held.txt")
        assert "path held.txt is open" in said
        assert (plane.volume("shared").committed() / "held.txt").exists()


@pytest.mark.parametrize(("reading", "taken"), [("closed", False), ("all", True)])
def test_a_background_commit_takes_closed_files_or_half_written_ones_too(
    tmp_path: Path, reading: str, taken: bool
) -> None:
    profile = f"lenient,background_commit={reading}"
    with LocalPlane(engine="inline", profile=profile, background_commit_s=0.2) as plane:
        writer = peer(plane, "writer")
        call = writer.write_half_and_wait.spawn(str(tmp_path / "go"))
        tree = plane.volume("shared").committed()
        wait_for_file(tree / "closed.txt")
        assert (tree / "half.txt").exists() is taken
        (tmp_path / "go").touch()
        call.get(timeout=60)
        wait_for_file(tree / "half.txt")
        assert (tree / "half.txt").read_text() == "half"


def test_without_background_commits_nothing_is_committed_by_itself(tmp_path: Path) -> None:
    with LocalPlane(engine="inline", background_commit_s=0) as plane:
        someone = peer(plane, "writer")
        someone.write.remote("x", "1")
        assert list(plane.volume("shared").uncommitted().values()) == [["x"]]


# ---------------------------------------------------------------------------- large Volumes


@pytest.fixture(params=["inline", "fork"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalPlane]:
    if (problem := overlay_problem(tmp_path)) is not None:
        pytest.skip(f"no overlays here: {problem}")
    with LocalPlane(tmp_path / "s", engine=request.param, background_commit_s=0) as plane:
        plane.deploy(str(APPS / "many_files.py"))
        modal.Function.from_name("many-files", "fill", client=plane.client()).remote(MANY)
        yield plane


def test_containers_share_the_files_of_a_large_volume_and_see_it_as_any_other(
    large: LocalPlane, tmp_path: Path
) -> None:
    worker = modal.Cls.from_name("many-files", "Worker", client=large.client())
    first, second = worker(name="first"), worker(name="second")
    assert [first.kind.remote(), second.kind.remote()] == ["overlay", "overlay"]
    assert any("renaming a directory" in line for line in lines(large))
    before = second.reload_and_read.remote()
    assert before == {"old/0": "0", "old/1": "1", "old/2": "2", "old/3": "3", "renamed/f": None}

    first.change.remote()
    assert second.reload_and_read.remote() == before
    assert ["old/1", "old/2", "old/3", "renamed", "renamed/f"] in (
        large.volume("many").uncommitted().values()
    )
    first.commit.remote()
    assert "path old/5 is open" in second.reload_with_open_file.remote()
    after = {"old/0": "0", "old/1": "changed", "old/2": "2+", "old/3": None, "renamed/f": "first"}
    assert second.reload_and_read.remote() == after
    assert list(large.volume("many").uncommitted().values()).count([]) >= 2

    private = [
        path
        for view in (tmp_path / "s/.views").glob("*/ta-*/vo-*/upper")
        for path in view.rglob("*")
        if path.is_file()
    ]
    assert 0 < len(private) < 20  # of 1,100: what was changed, in two containers


@pytest.mark.slow
def test_no_trace_is_left_of_a_large_volume_s_views(tmp_path: Path) -> None:
    """Overlayfs makes a directory that its own maker cannot read."""
    with LocalPlane(tmp_path / "s", engine="inline") as plane:
        plane.deploy(str(APPS / "many_files.py"))
        modal.Function.from_name("many-files", "fill", client=plane.client()).remote(MANY)
        worker = modal.Cls.from_name("many-files", "Worker", client=plane.client())
        worker(name="last").change.remote()
    assert not (tmp_path / "s/.views").exists()
    assert [path.name for path in (tmp_path / "s/volumes").iterdir()] == ["many"]


# ---------------------------------------------------------------------------- conditions


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_fails_the_commit_and_damages_nothing(small_disk: Path) -> None:
    with LocalPlane(small_disk / "s", engine="inline", background_commit_s=0) as plane:
        someone = peer(plane, "writer")
        someone.write.remote("kept", "old")
        someone.commit.remote()
        someone.write.remote("kept", "new")
        someone.write_large.remote("large", 10 << 20)
        with pytest.raises(RuntimeError, match="no space left"):
            someone.commit.remote()
        tree = plane.volume("shared").committed()
        assert {path.name: path.read_text() for path in tree.iterdir()} == {"kept": "old"}
        assert list((tree.parent / "staging").iterdir()) == []

        someone.write.remote("large", "small now")
        someone.commit.remote()
        assert (tree / "kept").read_text() == "new"
        assert (tree / "large").read_text() == "small now"


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        ([("vo-1", "/", "")], "cannot be mounted at '/'"),
        ([("vo-1", "/root", "")], "cannot be mounted at '/root'"),
        ([("vo-1", "/tmp", "")], "cannot be mounted at '/tmp'"),
        ([("vo-1", "rel", "")], "canonical and absolute"),
        ([("vo-1", "/a/../b", "")], "canonical and absolute"),
        ([("vo-1", "/a", "x/../../y")], "leads out of the Volume"),
        ([("vo-1", "/a", ""), ("vo-1", "/b", "")], "same Volume is mounted more than once: vo-1"),
        ([("vo-1", "/a", ""), ("vo-2", "/a", "")], "same mount path is mounted more than once: /a"),
    ],
)
def test_mounts_that_modal_refuses_are_refused_by_the_plane_too(
    mounts: list[tuple[str, str, str]], said: str
) -> None:
    """A client of another version, or none of modal's, may let them pass."""
    asked = [api_pb2.VolumeMount(volume_id=v, mount_path=p, sub_path=s) for v, p, s in mounts]
    with pytest.raises(GRPCError, match=said):
        check_mounts(asked)
    check_mounts([api_pb2.VolumeMount(volume_id="vo-1", mount_path="/root/data", sub_path="/x")])
