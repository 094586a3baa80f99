"""The Volume of these tests keeps the rules that a run has to live with."""

from __future__ import annotations

import pytest

from tests.support.volumes import DirectoryVolume


def names(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_writers_of_different_files_keep_each_others(tmp_path):
    first = DirectoryVolume(tmp_path)
    second = first.next_container()
    (first.mount / "a").write_text("1")
    (second.mount / "b").write_text("2")
    first.commit()
    second.commit()
    assert names(first.committed) == {"a", "b"}
    assert names(first.mount) == {"a"}
    first.reload()
    assert names(first.mount) == {"a", "b"}


def test_of_two_writers_of_one_file_the_last_wins(tmp_path):
    first = DirectoryVolume(tmp_path)
    second = first.next_container()
    (first.mount / "a").write_text("first")
    (second.mount / "a").write_text("second")
    second.commit()
    first.commit()
    assert (first.committed / "a").read_text() == "first"


def test_a_reload_keeps_what_is_not_committed(tmp_path):
    volume = DirectoryVolume(tmp_path)
    (volume.mount / "gone").write_text("")
    (volume.mount / "changed").write_text("old")
    volume.commit()
    (volume.mount / "gone").unlink()
    (volume.mount / "changed").write_text("newer")
    (volume.mount / "new").write_text("")
    volume.reload()
    assert names(volume.mount) == {"changed", "new"}
    volume.commit()
    assert names(volume.committed) == {"changed", "new"}
    assert (volume.committed / "changed").read_text() == "newer"


def test_what_is_not_committed_is_gone_with_the_container(tmp_path):
    volume = DirectoryVolume(tmp_path)
    (volume.mount / "a").write_text("")
    assert names(volume.next_container().mount) == set()


def test_an_open_file_refuses_the_reload_after_the_commit(tmp_path):
    volume = DirectoryVolume(tmp_path)
    with (volume.mount / "a").open("w"), pytest.raises(RuntimeError, match="open files"):
        volume.commit()
    assert names(volume.committed) == {"a"}
