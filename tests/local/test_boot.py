"""The first code of a container: mounts, signals, and the death of its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modalkit.local import boot

BOOT = Path(boot.__file__)
REASON = boot.mounts_available()
needs_mounts = pytest.mark.skipif(REASON is not None, reason=str(REASON))

# Takes the right to make user namespaces away from this process, then becomes boot.py.
FORBID = """
import os, sys
from pathlib import Path
from modalkit.local import mounts
mounts._call("unshare", mounts.CLONE_NEWUSER)
uid, gid = map(int, sys.argv[1:3])
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""

SHOW = """
import json, os, sys
from pathlib import Path
facts = {}
for target in TARGETS:
    path = Path(target)
    try:
        shown = path.read_text() if path.is_file() else sorted(p.name for p in path.iterdir())
    except OSError as error:
        shown = type(error).__name__
    try:
        (path / "written").touch() if path.is_dir() else path.open("a").close()
        writable = True
    except OSError:
        writable = False
    facts[target] = [shown, writable]
print(json.dumps({
    "targets": facts, "cwd": os.getcwd(), "uid": os.getuid(), "argv": sys.argv,
    "path": sys.path[0], "name": __name__,
    "siblings": [p for p in sys.path if p.endswith("modalkit/local")],
    "imported": sorted(m for m in sys.modules if m.startswith("modalkit")),
}))
"""


@pytest.fixture
def place(tmp_path):
    for name in ("cwd", "scratch", "source"):
        (tmp_path / name).mkdir()
    (tmp_path / "source/file").write_text("x")
    return tmp_path


def write_spec(place, module, *mounts, **more):
    (place / "cwd/program.py").write_text(module)
    spec = {
        "mounts": [{"source": str(s), "target": t, "read_only": r} for s, t, r in mounts],
        "scratch": str(place / "scratch"),
        "cwd": str(place / "cwd"),
        "guard": None,
        "fork_socket": None,
        "module": "program",
        **more,
    }
    (place / "spec.json").write_text(json.dumps(spec))
    return str(place / "spec.json")


def start(place, module, *mounts, **more):
    spec = write_spec(place, module, *mounts, **more)
    return subprocess.run(
        [sys.executable, BOOT, spec], capture_output=True, text=True, check=False, cwd="/"
    )


def shown(place, *mounts):
    targets = [target for _, target, _ in mounts]
    done = start(place, SHOW.replace("TARGETS", repr(targets)), *mounts)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---------------------------------------------------------------------------- the process


def test_the_module_runs_as_modals_entrypoint_would(place):
    """Working directory first on sys.path, this directory not on it, nothing of modalkit loaded."""
    facts = shown(place)
    assert facts["cwd"] == facts["path"] == str(place / "cwd")
    assert facts["name"] == "__main__"
    assert facts["siblings"] == []
    assert facts["imported"] == []


def test_no_module_here_hides_one_of_the_standard_library():
    """While boot.py imports, its own directory comes first on sys.path."""
    names = {path.stem for path in BOOT.parent.glob("*.py")} | {"services"}
    assert names.isdisjoint(sys.stdlib_module_names)


def test_an_ignored_sigint_interrupts_again(place):
    """A plane started in the background of a script ignores SIGINT, and its children inherit it."""
    program = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
    spec = write_spec(place, program)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [sys.executable, BOOT, spec],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    with process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("mounted", [False, pytest.param(True, marks=needs_mounts)])
def test_the_container_dies_with_its_parent(place, mounted):
    program = "import time\nprint('ready', flush=True)\ntime.sleep(60)"
    mounts = [(place / "source", "/outputs", False)] if mounted else []
    spec = write_spec(place, program, *mounts)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, sys.executable, BOOT, spec], stdout=subprocess.PIPE
    ) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.01)
    assert not _is_running(child)


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def test_a_parent_that_died_before_the_start_is_noticed(place):
    done = start(place, "print('ran')", parent=1 << 22)
    assert done.returncode == boot.EXIT_CONFIG
    assert done.stdout == ""


# ---------------------------------------------------------------------------- mounts


@needs_mounts
@pytest.mark.parametrize("target", ["/outputs", "/mnt/x", "/root/data/deep", "/usr/lib/modalkit-x"])
def test_a_volume_appears_at_a_path_that_does_not_exist(place, target):
    facts = shown(place, (place / "source", target, False))
    assert facts["targets"][target] == [["file"], True]
    assert facts["uid"] == os.getuid()
    assert (place / "source/written").exists()
    assert not os.path.exists(target)  # noqa: PTH110 - also false where it may not be looked up


@needs_mounts
def test_a_volume_hides_what_the_host_has_there(place):
    existing = place / "existing"
    existing.mkdir()
    (existing / "of-the-host").touch()
    facts = shown(place, (place / "source", str(existing), False))
    assert facts["targets"][str(existing)] == [["file"], True]
    assert [path.name for path in existing.iterdir()] == ["of-the-host"]


@needs_mounts
def test_read_only_mounts_refuse_writes(place):
    facts = shown(place, (place / "source", "/outputs", True))
    assert facts["targets"]["/outputs"] == [["file"], False]


@needs_mounts
def test_mounts_nest_in_any_order(place):
    inner = place / "inner"
    inner.mkdir()
    (inner / "deep").touch()
    facts = shown(place, (inner, "/outputs/a/b", False), (place / "source", "/outputs", False))
    assert facts["targets"]["/outputs/a/b"] == [["deep"], True]
    assert facts["targets"]["/outputs"] == [["a", "file"], True]


@needs_mounts
def test_single_files_can_be_mounted(place):
    (place / "code").write_text("print(1)")
    targets = ["/opt/modalkit-code/f.py", "/etc/hostname", "/f.py"]
    facts = shown(place, *((place / "code", target, True) for target in targets))
    assert [facts["targets"][target] for target in targets] == [["print(1)", False]] * 3
    assert not Path("/opt/modalkit-code").exists()


@needs_mounts
def test_the_rest_of_the_file_system_stays(place):
    """Directories beside a mount point, /proc, /dev and writes elsewhere work as before."""
    program = f"""
import os, subprocess, tempfile
from pathlib import Path
Path({str(place)!r}, "note").write_text("here")
assert Path("/proc/self/status").exists() and os.urandom(1)
with open("/dev/null", "w") as null: null.write("x")
assert subprocess.run(["true"]).returncode == 0
print(sorted(p.name for p in Path("/").iterdir() if p.name != "outputs"))
"""
    done = start(place, program, (place / "source", "/outputs", False))
    assert done.stderr == ""
    assert (place / "note").read_text() == "here"
    expected = sorted(p.name for p in Path("/").iterdir() if p.name != "outputs")
    assert done.stdout.strip() == str(expected)


@needs_mounts
def test_two_containers_see_their_own_mounts(place):
    other = place / "other"
    other.mkdir()
    (other / "mine").touch()
    first = shown(place, (place / "source", "/outputs", False))
    second = shown(place, (other, "/outputs", False))
    assert first["targets"]["/outputs"][0] == ["file"]
    assert second["targets"]["/outputs"][0] == ["mine"]


@needs_mounts
def test_where_namespaces_are_forbidden_the_sysctl_is_named(place):
    """Exit code 78 and one line with the remedy, instead of a traceback."""
    spec = write_spec(place, "print('ran')", (place / "source", "/outputs", False))
    (place / "scratch").chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", FORBID, str(os.getuid()), str(os.getgid()), BOOT, spec],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(BOOT.parents[2])},
    )
    assert done.returncode == boot.EXIT_CONFIG
    assert len(done.stderr.splitlines()) == 1
    assert "sudo sysctl user.max_user_namespaces=15000" in done.stderr


def test_the_probe_says_why(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "this is darwin" in boot.mounts_available()
