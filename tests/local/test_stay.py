"""A plane that stays: started, used and ended from a shell, as a user does it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from modalkit.errors import PlaneStartError
from modalkit.local import ContainerInfo, LocalPlane, RunningPlane, claim, plane_process

from .conftest import APPS
from .test_leaves_nothing import is_running, until

BIN = Path(sys.executable).parent
NOBODY = 65534


class Shell:
    """What a user types, in one shell of his own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(home),
            "MODAL_PROFILE": "work",
            "TMPDIR": str(home),
        }

    def __call__(
        self, *command: str, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return done

    def local(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self("modalkit", "local", *arguments, check=check)

    def eval_env(self, *arguments: str) -> None:
        text = self.local("env", *arguments).stdout
        printed = self("bash", "-c", f"{text}\nenv -0").stdout
        self.env = dict(entry.split("=", 1) for entry in printed.split("\0") if entry)

    @property
    def state(self) -> Path:
        return self.home / ".local" / "state" / "modalkit" / "plane"

    def holder(self) -> claim.Holder:
        found = claim.holder(self.state)
        assert found is not None
        return found

    def containers(self, *arguments: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(self.local("ps", "--json", *arguments).stdout)
        return found


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A home directory whose path has room for sockets; nothing stays up in it."""
    with tempfile.TemporaryDirectory(prefix="x") as directory:
        shell = Shell(Path(directory))
        yield shell
        holder = claim.holder(shell.state)
        if holder is not None:
            plane_process.end(Path(holder.runtime))


def left(shell: Shell) -> list[Path]:
    return list(shell.home.glob("mk-*"))


@pytest.fixture
def up(shell: Shell) -> Shell:
    """The shell, with a plane that stays, its settings and a deployed app."""
    started = shell.local("up", "--engine", "inline", "--strict-image")
    assert started.stdout == ""
    assert 'eval "$(modalkit local env)"' in started.stderr
    shell.eval_env()
    shell("modal", "deploy", str(APPS / "kept.py"))
    return shell


def busy(plane: RunningPlane) -> ContainerInfo:
    return [c for c in plane.wait_for(lambda found: any(c.inputs for c in found)) if c.inputs][-1]


def test_settings_lead_to_the_plane_and_can_be_taken_back(shell: Shell) -> None:
    before = {name for name in shell.env if name != "MODAL_PROFILE"}
    shell.local("up", "--engine", "inline")
    shell.eval_env()
    assert "MODAL_PROFILE" not in shell.env
    assert shell.env["MODAL_TOKEN_ID"] == "ak-local"
    runtime = Path(shell.env["MODALKIT_LOCAL_PLANE"])
    assert (runtime / "control.sock").exists()
    for directory in (runtime, shell.state, shell.state / "volumes"):
        assert directory.stat().st_mode & 0o777 == 0o700
    shell.eval_env("--unset")
    assert before <= set(shell.env)
    assert not [name for name in shell.env if name.startswith(("MODAL_", "MODALKIT_"))]


def test_secrets_may_be_set_before_the_plane_is_up(shell: Shell) -> None:
    shell.local("secret", "set", "token", "A=hidden")
    assert shell.local("secret", "list").stdout == "token: A\n"
    shell.local("up", "--engine", "inline")
    shell.eval_env()
    assert "token" in shell("modal", "secret", "list", "--json").stdout


@pytest.mark.slow
def test_modals_commands_for_apps_logs_and_volumes(up: Shell) -> None:
    ran = up("modal", "run", str(APPS / "functions.py"), "--n", "11", "--greeting", "hey")
    assert "answer 121 hey" in ran.stdout
    listed = json.loads(up("modal", "app", "list", "--json").stdout)
    apps = {app["description"]: app for app in listed}
    assert apps["kept"]["state"] == "deployed"
    assert apps["functions"]["state"] == "stopped"
    assert apps["functions"]["stopped_at"]
    identifier = apps["functions"]["app_id"]
    assert "squaring 11" in up("modal", "app", "logs", identifier).stdout
    since = up("modal", "app", "logs", identifier, "--since", "1h", "-s", "stdout").stdout
    assert "squaring 11" in since
    assert "and to stderr" not in since
    found = up("modal", "app", "logs", identifier, "--search", "stderr").stdout
    assert "and to stderr" in found
    assert "squaring" not in found
    assert "kept-data" in up("modal", "volume", "list").stdout
    up("modal", "volume", "put", "kept-data", str(APPS / "kept.py"), "/there.py")
    assert "there.py" in up("modal", "volume", "ls", "kept-data").stdout
    up("modal", "app", "stop", "kept", "--yes")
    again = up("modal", "app", "stop", "kept", "--yes", check=False)
    assert again.returncode == 1
    assert "already stopped" in again.stderr


@pytest.mark.slow
def test_containers_are_shown_stopped_preempted_and_killed(up: Shell) -> None:
    plane = LocalPlane.attach(up.state)
    modal.Function.from_name("kept", "wait", client=plane.client()).spawn("x")
    victim = busy(plane)
    table = up.local("ps").stdout
    for word in ("container", "age", victim.id, "kept", "wait", "busy", "cold", str(victim.pid)):
        assert word in table
    assert up.containers()[0]["inputs"] == victim.inputs
    [row] = json.loads(up("modal", "container", "list", "--json").stdout)
    assert (row["container_id"], row["app_name"]) == (victim.id, "kept")
    stop = ("modal", "container", "stop", victim.id, "--yes")
    for command in (stop, ("preempt", "--grace-s", "20"), ("kill",)):
        victim = busy(plane)
        if command is stop:
            up(*command)
        else:
            up.local(command[0], victim.id, *command[1:])
        until(lambda gone=victim.id: gone not in [c.id for c in plane.containers()], "its end", 60)
    assert busy(plane).inputs == victim.inputs  # it never failed
    ended = {c["id"]: c["returncode"] for c in up.containers("--all")}
    assert ended[victim.id] == -signal.SIGKILL
    assert f"exited ({-signal.SIGKILL})" in up.local("ps", "--all").stdout
    unknown = up.local("kill", victim.id, check=False)
    assert unknown.returncode == 1
    assert f"no live container '{victim.id}'" in unknown.stderr


def test_where_no_plane_is_up_the_remedy_is_named(shell: Shell) -> None:
    nothing = shell.local("ps", check=False)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert f"no local plane is up at {shell.state}; `modalkit local up`" in nothing.stderr
    down = shell.local("down")
    assert (down.stdout, down.stderr) == ("", "No local plane is up.\n")
    assert shell.local("up", "--engine", "magic", check=False).returncode == 2
    with pytest.raises(PlaneStartError, match=f"no local plane is up at {shell.state}"):
        LocalPlane.attach(shell.state)


def test_an_ordinary_life_leaves_nothing_but_the_state(up: Shell) -> None:
    plane = LocalPlane.attach(up.state)
    modal.Function.from_name("kept", "wait", client=plane.client()).spawn("x")
    first, container = up.holder(), busy(plane)
    second = up.local("up", "--engine", "inline", check=False)
    assert second.returncode == 1
    assert f"another plane (pid {first.plane}) is using {up.state}" in second.stderr
    assert busy(plane).id == container.id  # the first one lives on, and so do its sockets
    assert "has ended" in up.local("down").stderr
    assert not any(map(is_running, (container.pid, first.plane, first.warden)))
    assert left(up) == []
    assert {path.name for path in up.state.iterdir()} == {
        *("volumes", "objects", "files", "blobs", "plane.db", "plane.log", ".lock")
    }
    again = up.local("up", "--engine", "inline")
    assert "was killed" not in again.stderr
    assert "Deployed apps: 1. Inputs that run again: 1." in again.stderr


LOOK = "import modal; print(modal.Function.from_name('kept', 'look').remote()[0])"


@pytest.mark.parametrize("victim", ["plane", "warden"])
def test_after_a_kill_the_next_one_recovers(up: Shell, victim: str) -> None:
    plane = LocalPlane.attach(up.state)
    modal.Function.from_name("kept", "wait", client=plane.client()).spawn("x")
    first, container = up.holder(), busy(plane)
    os.kill(getattr(first, victim), signal.SIGKILL)
    if victim == "warden":  # nobody is left to sweep, but what dies with its parent does
        until(lambda: not is_running(container.pid), "the container to die")
        assert left(up) == [Path(first.runtime)]
        assert "No local plane is up" in up.local("down", "--state", str(up.state)).stderr
    again = up.local("up", "--engine", "inline")  # it waits for the warden
    assert not is_running(container.pid)
    assert "was killed; this one recovered" in again.stderr
    assert "Deployed apps: 1. Inputs that run again: 1." in again.stderr
    assert left(up) == [Path(first.runtime)]  # the same, so what `env` printed still holds
    assert up("python", "-c", LOOK).stdout == "green\n"
    assert busy(plane).inputs == container.inputs


def test_a_plane_that_hangs_is_ended_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.local("up", "--engine", "inline")
    holder = shell.holder()
    os.kill(holder.plane, signal.SIGSTOP)
    monkeypatch.setattr(plane_process, "CLOSE_TIMEOUT_S", 0.5)
    LocalPlane.attach(shell.state).down()
    until(lambda: claim.holder(shell.state) is None, "the warden to clean up")
    assert not is_running(holder.plane)
    assert left(shell) == []


AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except PermissionError:
            print("refused")
        else:
            print("LET IN")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_another_user_cannot_call_a_plane(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with LocalPlane(state, engine="inline") as plane:
        runtime = Path(plane.env["MODALKIT_LOCAL_PLANE"])
        code = AS_NOBODY.format(nobody=NOBODY)
        sockets = [str(runtime / name) for name in ("plane.sock", "control.sock")]
        done = subprocess.run(
            [sys.executable, "-c", code, *sockets], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["refused", "refused"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's directory")
def test_a_directory_that_another_user_put_in_the_way_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    squatted = claim.runtime_of(state)
    squatted.mkdir()
    os.chown(squatted, NOBODY, NOBODY)
    try:
        with pytest.raises(PlaneStartError, match=f"directory {squatted}.*another TMPDIR"):
            LocalPlane(state, engine="inline").__enter__()
        assert squatted.is_dir()
    finally:
        squatted.rmdir()


SECRETIVE = """
import os, time, sys
import modal

app = modal.App("secretive")

@app.function()
def hold(data: bytes, path: str):
    print("HOLDING", len(data), flush=True)
    while not os.path.exists(path):
        time.sleep(0.05)
    return data

@app.local_entrypoint()
def main(path: str):
    hold.remote(b"x" * (3 << 20), path)
"""


def test_payloads_are_served_behind_a_token_that_nobody_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from modal_proto import api_pb2

    monkeypatch.setenv("MODALKIT_LOCAL_LOG", "debug")
    app = tmp_path / "secretive.py"
    app.write_text(SECRETIVE)
    with LocalPlane(tmp_path / "state", engine="inline", echo_logs=True) as plane:
        client = subprocess.Popen(
            [sys.executable, "-P", "-m", "modal", "run", str(app), "--path", str(tmp_path / "go")],
            env={**os.environ, **plane.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(lambda: any("HOLDING" in line.text for line in plane.logs()), "the payload", 60)
        url = _blob_url(plane, api_pb2)
        host, token, rest = url.removeprefix("http://").split("/", 2)
        assert len(token) >= 22  # 128 bits
        assert _http(host, "GET", f"/{token}/blob/nowhere").startswith("HTTP/1.1 404")
        for path in (f"/{rest}", f"/x{token[1:]}/{rest}", "/", f"/{token[:-1]}/{rest}"):
            for method in ("GET", "PUT"):
                assert _http(host, method, path).startswith("HTTP/1.1 404"), (method, path)
        assert _http(host, "PUT", f"/{token}/{rest}").startswith("HTTP/1.1 200")
        seen = []
        for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
            with contextlib.suppress(OSError):  # gone, or another container's
                seen.append(path.read_bytes())
        assert any(b"modal\0run" in text for text in seen)
        assert not any(token.encode() in text for text in seen)
        (tmp_path / "go").touch()
        said = client.communicate(timeout=60)[0]
        assert client.returncode == 0, said
        assert token not in said + "".join(line.text for line in plane.logs())
    assert token not in "".join(capfd.readouterr())


def _blob_url(plane: LocalPlane, api_pb2: object) -> str:
    from modal._utils.async_utils import synchronize_api

    async def ask(client: object) -> str:
        response = await client._stub.BlobCreate(api_pb2.BlobCreateRequest())
        return response.upload_url

    return synchronize_api(ask)(plane.client())


def _http(host: str, method: str, path: str) -> str:
    name, port = host.split(":")
    with socket.create_connection((name, int(port)), timeout=20) as connection:
        request = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"
        connection.sendall(f"{request}Connection: close\r\n\r\n".encode())
        return connection.makefile("rb").read().decode(errors="replace")


def test_what_env_prints_is_safe_to_evaluate(shell: Shell) -> None:
    odd = shell.home / "it's a $(touch surprise) dir"
    odd.mkdir()
    shell.env["TMPDIR"] = str(odd)
    shell.local("up", "--engine", "inline")
    shell.eval_env()
    assert Path(shell.env["MODALKIT_LOCAL_PLANE"]).parent == odd
    assert not list(shell.home.rglob("surprise"))
    assert shell.containers() == []
