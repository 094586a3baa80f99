"""However a plane or its clients end, no process and no file is left."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modalkit.errors import PlaneStartError
from modalkit.local import LocalPlane
from modalkit.local.processes import descendants

from .conftest import APPS
from .test_boot import FORBID

SLEEPER = """
import os, subprocess, sys, time
import modal

app = modal.App("sleeper")


@app.function(timeout=600)
def sleep():
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print("PIDS", os.getpid(), child.pid, flush=True)
    time.sleep(600)


@app.local_entrypoint()
def main():
    sleep.remote()
"""


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    path = tmp_path / "sleeper.py"
    path.write_text(SLEEPER)
    return path


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def container_pids(plane: LocalPlane) -> list[int]:
    said = [line.text.split() for line in plane.logs() if line.text.startswith("PIDS")]
    return [int(pid) for words in said for pid in words[1:]]


def plane_directories() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("mk-*")}


def start_client(plane: LocalPlane, app_file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "modal", "run", str(app_file)],
        env={**os.environ, **plane.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_client_that_is_killed_takes_its_app_with_it(app_file: Path) -> None:
    with LocalPlane() as plane, start_client(plane, app_file) as client:
        until(lambda: container_pids(plane), "the container to start", 30)
        client.kill()
        until(lambda: not plane.containers(), "the app to be reaped")
        assert not is_running(container_pids(plane)[0])


def test_a_client_that_is_interrupted_stops_its_app(app_file: Path) -> None:
    with LocalPlane() as plane, start_client(plane, app_file) as client:
        until(lambda: container_pids(plane), "the container to start", 30)
        client.send_signal(signal.SIGINT)
        client.wait(20)
        until(lambda: not plane.containers(), "the containers to end")


@pytest.mark.parametrize("victim", ["plane", "warden"])
def test_a_plane_that_is_killed_leaves_no_container_and_no_directory(
    app_file: Path, victim: str
) -> None:
    before = plane_directories()
    with LocalPlane() as plane, start_client(plane, app_file) as client:
        until(lambda: container_pids(plane), "the container to start", 30)
        pids = container_pids(plane)
        warden = plane._process.pid
        os.kill(plane.pid if victim == "plane" else warden, signal.SIGKILL)
        if victim == "plane":
            until(lambda: not any(map(is_running, pids)), "the containers to die")
            until(lambda: plane_directories() <= before, "the directories to go")
        else:  # nobody is left to sweep, but what dies with its parent does
            until(lambda: not is_running(pids[0]), "the container to die")
            os.kill(pids[1], signal.SIGKILL)
        client.kill()
    assert plane_directories() <= before


def test_an_owner_that_is_killed_takes_plane_and_containers_with_it(app_file: Path) -> None:
    before = plane_directories()
    owner = subprocess.Popen(
        [sys.executable, "-m", "modalkit.cli", "local", "run", str(app_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert owner.stdout is not None
    for line in owner.stdout:
        if b"PIDS" in line:
            break
    family = descendants(owner.pid)
    owner.kill()
    owner.wait()
    clients = [pid for pid in family if is_running(pid) and b"modal\0run" in command(pid)]
    for pid in clients:  # the client is the owner's child, not the plane's
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_running, family)), "all processes to end")
    until(lambda: plane_directories() <= before, "the directories to go")


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_an_ordinary_end_leaves_nothing_but_the_state(tmp_path: Path) -> None:
    before = plane_directories()
    with LocalPlane(tmp_path / "state") as plane:
        plane.run(f"{APPS / 'functions.py'}::flaky", "--fails", "0", capture=True)
        pids = [container.pid for container in plane.containers(all=True)]
    assert not any(map(is_running, pids))
    assert plane_directories() <= before
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"volumes", ".lock"}
    with LocalPlane(tmp_path / "state") as plane:
        assert list(plane.volume("attempts").committed().iterdir())


def test_the_plane_is_private(tmp_path: Path) -> None:
    with LocalPlane(engine="inline") as plane:
        directory = Path(plane.env["MODAL_SERVER_URL"].removeprefix("unix://")).parent
        assert directory.stat().st_mode & 0o777 == 0o700
        assert "MODAL_TOKEN_SECRET" in plane.env


def test_a_plane_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "volumes").write_text("a file where a directory belongs")
    code = f"from modalkit.local import LocalPlane\nwith LocalPlane({str(tmp_path)!r}): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PlaneStartError" in done.stderr
    assert "FileExistsError" in done.stderr


def test_two_planes_do_not_share_a_state_directory(tmp_path: Path) -> None:
    with LocalPlane(tmp_path) as first:
        with pytest.raises(PlaneStartError, match="another plane"), LocalPlane(tmp_path):
            pass
        assert first.containers() == []  # and the first one lives on
    with LocalPlane(tmp_path) as later:
        assert later.containers() == []


def test_a_machine_that_forbids_private_mounts_says_so_with_the_remedy(tmp_path: Path) -> None:
    target = f"{APPS / 'volumes.py'}::write_read_only"
    who = [str(os.getuid()), str(os.getgid())]
    command = [sys.executable, "-c", FORBID, *who, "-m", "modalkit.cli", "local", "run", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "max_user_namespaces" in said
