"""However a plane or its clients end, no process and no file is left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest

from modalkit.errors import LocalPlaneError, PlaneStartError
from modalkit.local import LocalPlane, claim, plane_process
from modalkit.local.processes import descendants
from modalkit.local.services.logs import LOST_CLIENT_S

from .conftest import APPS, lines
from .test_boot import FORBID

SILENT = """

if __name__ == "__main__":
    with app.run():
        sleep.remote()
"""

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


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a TMPDIR of our own: other planes may run on this machine."""
    with tempfile.TemporaryDirectory(prefix="x") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(directory)


def plane_directories() -> set[str]:
    return {path.name for path in Path(os.environ["TMPDIR"]).glob("mk-*")}


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


@pytest.mark.slow
def test_a_detached_app_outlives_its_client(tmp_path: Path) -> None:
    told = tmp_path / "told"
    target = [f"{APPS / 'functions.py'}::talk_until", "--path", str(told)]
    with LocalPlane(engine="inline") as plane:
        client = subprocess.Popen(
            [sys.executable, "-P", "-m", "modal", "run", "--detach", *target],
            env={**os.environ, **plane.env},
            stdout=subprocess.DEVNULL,
        )
        until(lambda: "TALKING" in lines(plane), "the function to start", 30)
        client.kill()
        client.wait()
        time.sleep(2)  # an app that is not detached is gone long before
        told.touch()
        until(lambda: "TOLD TO STOP" in lines(plane), "the function to go on")


def test_a_client_that_is_interrupted_stops_its_app(app_file: Path) -> None:
    with LocalPlane() as plane, start_client(plane, app_file) as client:
        until(lambda: container_pids(plane), "the container to start", 30)
        client.send_signal(signal.SIGINT)
        client.wait(20)
        until(lambda: not plane.containers(), "the containers to end")


@pytest.mark.slow
def test_who_follows_the_logs_of_an_app_may_leave_it_alone(app_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "silent.py"
    script.write_text(SLEEPER + SILENT)
    with LocalPlane() as plane:
        env = {**os.environ, **plane.env}
        with subprocess.Popen([sys.executable, str(script)], env=env) as client:
            until(lambda: container_pids(plane), "the container to start", 30)
            [listed] = json.loads(plane.modal("app", "list", "--json", capture=True).stdout)
            command = [sys.executable, "-m", "modal", "app", "logs", "-f", listed["app_id"]]
            with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as follower:
                assert follower.stdout is not None
                follower.stdout.readline()
                follower.send_signal(signal.SIGINT)
            time.sleep(LOST_CLIENT_S + 2)
            assert is_running(container_pids(plane)[0])
            client.kill()


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
    kept = {"volumes", "objects", "files", "blobs", "plane.db", ".lock"}
    assert {path.name for path in (tmp_path / "state").iterdir()} == kept
    with LocalPlane(tmp_path / "state") as plane:
        assert list(plane.volume("attempts").committed().iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_plane_is_private(tmp_path: Path) -> None:
    with LocalPlane(tmp_path / "state", engine="inline") as plane:
        assert mode(runtime(plane)) == 0o700
        assert mode(tmp_path / "state") == 0o700
        assert mode(tmp_path / "state" / ".views") == 0o700
        assert "MODAL_TOKEN_SECRET" in plane.env
    ours = tmp_path / "ours"
    ours.mkdir(mode=0o755)
    with LocalPlane(ours, engine="inline"):
        assert mode(ours) == 0o755  # a directory that was there stays as it is


def runtime(plane: LocalPlane) -> Path:
    return Path(plane.env["MODAL_SERVER_URL"].removeprefix("unix://")).parent


def test_a_state_directory_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(PlaneStartError, match=r"cannot make its directory.*another state"):
        LocalPlane(tmp_path / "file" / "state").__enter__()
    assert plane_directories() == set()


def test_a_plane_that_does_not_start_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane_process, "START_TIMEOUT_S", 0.001)
    with pytest.raises(PlaneStartError, match=r"within 0\.001 s"):
        LocalPlane(engine="inline").__enter__()
    assert plane_directories() == set()


def test_a_plane_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalPlane(engine="inline") as plane:
        os.kill(plane.pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(plane_process, "ANSWER_TIMEOUT_S", 0.2)
            with pytest.raises(PlaneStartError, match="does not answer any more"):
                plane.containers()
        os.kill(plane.pid, signal.SIGCONT)
        assert plane.containers() == []


@pytest.mark.slow
@pytest.mark.parametrize("excess", [0, 1])
def test_a_tmpdir_too_long_for_sockets_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, excess: int
) -> None:
    room = claim.LONGEST_TMPDIR - len(str(temporary)) - 1
    long = temporary / ("x" * (room + excess))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with LocalPlane(engine="fork") as plane:
        assert runtime(plane).parent == (Path("/tmp") if excess else long)
        plane.deploy(str(APPS / "forked.py"))
        worker = modal.Cls.from_name("forked", "Async", client=plane.client())()
        assert worker.work.remote(1)[1] == [0]


def test_a_modal_py_in_the_working_directory_is_not_modal(tmp_path: Path) -> None:
    (tmp_path / "modal.py").write_text("raise SystemExit('this is not modal')")
    (tmp_path / "helper.py").write_text("TEXT = 'the local module'")
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "uses.py").write_text(USES_A_LOCAL_MODULE)
    with LocalPlane(engine="inline") as plane:
        done = plane.run("apps/uses.py::f", capture=True, cwd=tmp_path)
    assert "FOUND the local module" in done.stdout


USES_A_LOCAL_MODULE = """
import modal
import helper

app = modal.App("uses", image=modal.Image.debian_slim().add_local_python_source("helper"))

@app.function()
def f():
    print("FOUND", helper.TEXT)
"""


def test_a_bad_volume_name_is_an_error_of_ours() -> None:
    with (
        LocalPlane(engine="inline") as plane,
        pytest.raises(LocalPlaneError, match=r"Volume.*'\.\./x'|'\.\./x'.*Volume"),
    ):
        plane.volume("../x").committed()


def test_a_damaged_volume_record_is_reported_at_the_start(tmp_path: Path) -> None:
    record = tmp_path / "volumes" / "data" / "volume.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(PlaneStartError, match=f"{record}.*delete this file"):
        LocalPlane(tmp_path).__enter__()


UNKILLABLE = """
import os, subprocess, sys, time
from modalkit.local import server

def refuse(pid, signal):
    raise PermissionError

child = subprocess.Popen(["sleep", "60"])
kill, os.kill, server.SWEEP_S = os.kill, refuse, 0.5
started = time.process_time()
server._sweep({"state": sys.argv[1], "runtime": sys.argv[1] + "/mk-1"})
print(time.process_time() - started)
kill(child.pid, 9)
"""


def test_the_warden_gives_up_on_a_process_that_it_may_not_kill(tmp_path: Path) -> None:
    (tmp_path / "mk-1").mkdir()
    command = [sys.executable, "-c", UNKILLABLE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert float(done.stdout) < 0.25  # of 0.5 s: it does not spin
    assert not (tmp_path / "mk-1").exists()


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


@pytest.mark.slow
def test_a_machine_that_forbids_private_mounts_says_so_with_the_remedy(tmp_path: Path) -> None:
    target = f"{APPS / 'volumes.py'}::write_read_only"
    who = [str(os.getuid()), str(os.getgid())]
    command = [sys.executable, "-c", FORBID, *who, "-m", "modalkit.cli", "local", "run", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "max_user_namespaces" in said
