"""Which of a container's files are mounted where."""

from pathlib import Path

import pytest

from modalkit.local import staging


def mounts(staged: Path, *needed: str) -> dict[str, str]:
    found = staging.shown(staged, [Path(path) for path in needed])
    return {mount["target"]: mount["source"] for mount in found}


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path


def put(staged: Path, *paths: str) -> None:
    for path in paths:
        target = staged / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("/brand-new/a/b", "/brand-new"),  # as a whole: on Modal nothing else is there
        ("/opt/mine/a", "/opt/mine"),
        ("/tmp/mine/a", "/tmp/mine"),
        ("/usr/lib/mine/a", "/usr/lib/mine"),  # beside what this machine has
        ("/etc/mine.conf", "/etc/mine.conf"),
        ("/top-file", "/top-file"),
    ],
)
def test_it_hides_no_more_than_it_has_to(staged: Path, file: str, target: str) -> None:
    put(staged, file)
    assert mounts(staged)[target] == str(staged / target.lstrip("/"))
    assert "/usr" not in mounts(staged)


def test_what_the_interpreter_needs_stays(staged: Path) -> None:
    put(staged, "/brand-new/app/a", "/brand-new/venv-free")
    assert {"/brand-new/app", "/brand-new/venv-free"} < mounts(staged, "/brand-new/venv").keys()
    assert "/brand-new" not in mounts(staged, "/brand-new/venv")


def test_the_machines_root_shows_only_what_is_needed(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home-of-root"
    for name in (".cache", "project/venv", "other"):
        (home / name).mkdir(parents=True)
    monkeypatch.setattr(staging, "HOME", home)
    found = mounts(staged, str(home / "project/venv"))
    assert str(home / ".cache") in found
    assert str(home / "project/venv") in found
    assert not {str(home / "project"), str(home / "other")} & found.keys()
