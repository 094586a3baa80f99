"""`modalkit local run`, started as a user starts it."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from modalkit.cli.local import local
from modalkit.errors import PlaneStartError, UsageError

from .conftest import APPS

BARE = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]}  # no activated venv


def modalkit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("modalkit")
    return subprocess.run(
        [str(command), *arguments], cwd=cwd, env=BARE, capture_output=True, text=True, check=False
    )


def test_it_runs_an_app_from_any_directory_without_an_activated_venv(tmp_path: Path) -> None:
    app = str(APPS / "functions.py")
    done = modalkit("local", "run", app, "--n", "11", "--greeting", "hey", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "answer 121 hey" in done.stdout


@pytest.mark.slow
def test_python_in_a_container_is_the_containers_interpreter(tmp_path: Path) -> None:
    done = modalkit("local", "run", f"{APPS / 'functions.py'}::interpreter", cwd=tmp_path)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("PYTHON ")]
    _, running, found = line.split()
    assert Path(found) == Path(running).with_name("python")  # /usr/bin was first on the PATH


def test_its_exit_code_is_modals(tmp_path: Path) -> None:
    done = modalkit("local", "run", f"{APPS / 'functions.py'}::fail", "--x", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "unlucky 1" in done.stdout + done.stderr


def test_a_modal_that_is_killed_ends_it_as_a_shell_would_say(tmp_path: Path) -> None:
    app = tmp_path / "killed.py"
    app.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert modalkit("local", "run", str(app), cwd=tmp_path).returncode == 128 + signal.SIGKILL


def test_settings_of_no_plane_stop_the_shell_that_evaluates_them(tmp_path: Path) -> None:
    result = CliRunner().invoke(local, ["env", "--state", str(tmp_path)])
    assert result.stdout == "false\n"
    assert isinstance(result.exception, PlaneStartError)


@pytest.mark.parametrize("command", [["list"], ["delete", "x"]])
def test_only_set_makes_a_state_for_secrets(tmp_path: Path, command: list[str]) -> None:
    state = tmp_path / "typo"
    result = CliRunner().invoke(local, ["secret", command[0], "--state", str(state), *command[1:]])
    assert isinstance(result.exception, UsageError)
    assert str(state) in str(result.exception)
    assert not state.exists()
    assert (
        not CliRunner()
        .invoke(local, ["secret", "set", "--state", str(state), "x", "A=1"])
        .exit_code
    )
    assert state.stat().st_mode & 0o777 == 0o700
    assert (
        not CliRunner()
        .invoke(local, ["secret", command[0], "--state", str(state), *command[1:]])
        .exit_code
    )


@pytest.mark.slow
def test_state_keeps_volumes_between_runs(tmp_path: Path) -> None:
    target = f"{APPS / 'lifecycle.py'}::Worker.climb"
    for steps in ("3", "5"):
        done = modalkit("local", "run", "--state", "kept", target, "--steps", steps, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "NOTE anna step 2" not in done.stdout
    assert "NOTE anna step 3" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "flags", "snapshots"),
    [
        ("fork", (), False),  # whether one is taken does not depend on how
        ("inline", ("--snapshots",), True),
        ("fork", ("--snapshots",), True),
        ("auto", ("--snapshots",), True),
    ],
)
def test_snapshots_are_taken_when_they_are_asked_for(
    tmp_path: Path, engine: str, flags: tuple[str, ...], snapshots: bool
) -> None:
    app = tmp_path / "snap.py"
    app.write_text(
        "import os, modal\n"
        "app = modal.App('snap')\n"
        "@app.cls(enable_memory_snapshot=True)\n"
        "class C:\n"
        "    @modal.enter(snap=True)\n"
        "    def load(self): self.pid = os.getpid()\n"
        "    @modal.method()\n"
        "    def look(self):\n"
        "        restored = os.environ.get('MODAL_ENABLE_SNAP_RESTORE') == '1'\n"
        "        print('SNAP', restored, 'SAME', self.pid == os.getpid())\n"
    )
    done = modalkit("local", "run", "--engine", engine, *flags, f"{app}::C.look", cwd=tmp_path)
    # "auto" is "fork" wherever modal allows it, and the pinned one does.
    same = not snapshots or engine == "inline"
    assert f"SNAP {snapshots} SAME {same}" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_strict_image_fails_where_modal_would(tmp_path: Path) -> None:
    app = tmp_path / "needy.py"
    app.write_text(
        "import modal\n"
        "app = modal.App('needy', image=modal.Image.debian_slim().uv_pip_install('torch'))\n"
        "@app.function()\n"
        "def f():\n"
        "    import skimage\n"
        "    print('IMPORTED', skimage.__name__)\n"
    )
    loose = modalkit("local", "run", f"{app}::f", cwd=tmp_path)
    assert "IMPORTED skimage" in loose.stdout
    assert "scikit-image" in loose.stdout + loose.stderr
    strict = modalkit("local", "run", "--strict-image", f"{app}::f", cwd=tmp_path)
    assert strict.returncode == 1
    assert "ModuleNotFoundError" in strict.stdout + strict.stderr
    assert '.uv_pip_install("scikit-image")' in strict.stdout + strict.stderr


@pytest.mark.slow
def test_a_ctrl_c_lets_containers_save_and_leaves_nothing(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("modalkit")), "local", "run", "--state", "kept"]
    target = f"{APPS / 'lifecycle.py'}::Worker.climb"
    process = subprocess.Popen(
        [*command, target, "--steps", "500"],
        cwd=tmp_path,
        env=BARE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "NOTE anna step 3":
            os.killpg(process.pid, signal.SIGINT)
            break
    process.stdout.read()
    process.wait(30)
    committed = tmp_path / "kept" / "volumes" / "progress" / "committed"
    assert [path.read_text() for path in committed.glob("exit-*")] == ["bye"]


def test_help_teaches(tmp_path: Path) -> None:
    said = modalkit("local", "run", "--help", cwd=tmp_path).stdout
    for word in ("APP_REF", "--engine", "--snapshots", "--strict-image", "--state", "Examples:"):
        assert word in said
    # What `up` is told for a plane that stays, `run` is told for its own.
    options = [parameter.name for parameter in local.commands["up"].params]
    assert options
    assert options == [p.name for p in local.commands["run"].params if p.name in options]
    for name, command in local.commands.items():
        if isinstance(command, click.Group):
            continue  # its commands teach
        said = inspect.cleandoc(command.help or "")
        assert "\b\nExamples:\n" in said, name  # without it click joins the lines


@pytest.mark.slow
def test_an_app_that_does_not_exist_is_modals_own_error(tmp_path: Path) -> None:
    done = modalkit("local", "run", "nowhere.py", cwd=tmp_path)
    assert done.returncode != 0
    assert "nowhere.py" in "".join((done.stdout + done.stderr).split())  # rich breaks lines
