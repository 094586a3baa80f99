"""Forcing bytes to a disk: what a Volume does not know is tolerated, what fails is not."""

from __future__ import annotations

import errno
import os

import pytest

from modalkit.checkpoint import disk


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_mount_without_fsync_is_tolerated(tmp_path, monkeypatch, number):
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with (tmp_path / "f").open("wb") as file:
        file.write(b"x")
        disk.sync_file(file)
        assert (tmp_path / "f").read_bytes() == b"x", "flushed all the same"
    disk.sync_directory(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch, number):
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with (tmp_path / "f").open("wb") as file, pytest.raises(OSError, match=os.strerror(number)):
        disk.sync_file(file)
