"""Deployed apps: redeploys, snapshots of versions, scale-down, stop."""

import subprocess
import threading
import time
from pathlib import Path

import modal
import pytest

from modalkit.local import LocalPlane
from tests.support.profiles import PROFILE

from .test_leaves_nothing import is_running, until

APP = """
import os, time
import modal

app = modal.App("versions")


@app.cls(enable_memory_snapshot=True, scaledown_window=2, max_containers=2)
class Server:
    kind: str = modal.parameter(default="plain")

    @modal.enter(snap=True)
    def load(self):
        self.version = {version}

    @modal.method()
    def answer(self, pause_s: float = 0.0):
        time.sleep(pause_s)
        return [self.version, os.environ["MODAL_TASK_ID"]]


@app.function(single_use_containers=True)
def once():
    return os.environ["MODAL_TASK_ID"]


@app.function(min_containers=1)
def warm():
    return os.environ["MODAL_TASK_ID"]
"""


@pytest.fixture(params=["fork", pytest.param("inline", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def deploy(plane: LocalPlane, directory: Path, version: int) -> None:
    path = directory / "versions.py"
    path.write_text(APP.replace("{version}", str(version)))
    plane.deploy(str(path))


def test_a_redeploy_starts_new_code_and_lets_the_old_finish(tmp_path: Path, engine: str) -> None:
    with LocalPlane(engine=engine, strict_image=True, profile=PROFILE) as plane:
        deploy(plane, tmp_path, 1)
        server = modal.Cls.from_name("versions", "Server", client=plane.client())
        for kind in ("plain", "other"):  # a parametrised variant follows its base
            assert server(kind=kind).answer.remote()[0] == 1
        slow = server(kind="plain").answer.spawn(4.0)
        plane.wait_for(lambda found: any(c.inputs for c in found))
        old = [c.id for c in plane.containers()]
        deploy(plane, tmp_path, 2)
        for kind in ("plain", "other"):
            assert server(kind=kind).answer.remote()[0] == 2
        assert slow.get()[0] == 1
        until(lambda: not any(c.is_alive and c.id in old for c in plane.containers()), "the old")


@pytest.mark.slow
def test_idle_containers_go_and_the_next_input_gets_a_new_one(tmp_path: Path, engine: str) -> None:
    with LocalPlane(engine=engine, strict_image=True, profile=PROFILE) as plane:
        deploy(plane, tmp_path, 1)
        server = modal.Cls.from_name("versions", "Server", client=plane.client())()
        _, first = server.answer.remote()
        _, second = server.answer.remote()
        assert first == second
        until(lambda: all(c.id != first for c in plane.containers()), "scale-down", 10)
        gone = next(c for c in plane.containers(all=True) if c.id == first)
        assert gone.returncode == 0
        assert server.answer.remote()[1] != first


@pytest.mark.slow
def test_single_use_and_warm_containers(tmp_path: Path) -> None:
    with LocalPlane(engine="inline", strict_image=True) as plane:
        deploy(plane, tmp_path, 1)
        client = plane.client()
        warm = plane.wait_for(
            lambda found: any(c.function == "warm" and c.state == "idle" for c in found)
        )
        once = modal.Function.from_name("versions", "once", client=client)
        assert len({once.remote() for _ in range(3)}) == 3
        task = modal.Function.from_name("versions", "warm", client=client).remote()
        assert task in [c.id for c in warm]


@pytest.mark.slow
def test_app_stop_ends_everything(tmp_path: Path, engine: str) -> None:
    with LocalPlane(engine=engine, strict_image=True, profile=PROFILE) as plane:
        deploy(plane, tmp_path, 1)
        server = modal.Cls.from_name("versions", "Server", client=plane.client())()
        server.answer.remote()
        pids = [c.pid for c in plane.containers()]
        assert pids
        plane.modal("app", "stop", "versions", "--yes", capture=True)
        until(lambda: not plane.containers(), "the containers to end")
        assert not any(map(is_running, pids))
        with pytest.raises(modal.exception.NotFoundError):
            modal.Cls.from_name("versions", "Server", client=plane.client())().answer.remote()


def test_modal_run_takes_no_snapshot_and_a_deployed_app_does(tmp_path: Path) -> None:
    with LocalPlane(engine="fork", profile=PROFILE) as plane:
        deploy(plane, tmp_path, 1)
        plane.run(f"{tmp_path / 'versions.py'}::Server.answer", capture=True)
        assert [c.kind for c in plane.containers(all=True) if "Server" in c.function] == ["cold"]
        modal.Cls.from_name("versions", "Server", client=plane.client())().answer.remote()
        kinds = [c.kind for c in plane.containers(all=True) if "Server" in c.function]
        assert kinds == ["cold", "snapshotting", "restored"]


def test_a_template_that_is_killed_is_made_anew(tmp_path: Path) -> None:
    with LocalPlane(engine="fork", profile=PROFILE) as plane:
        deploy(plane, tmp_path, 1)
        server = modal.Cls.from_name("versions", "Server", client=plane.client())()
        server.answer.remote()
        [template] = [c for c in plane.containers() if c.kind == "snapshotting"]
        plane.kill(template.id)
        until(
            lambda: not [c for c in plane.containers() if "Server" in c.function],
            "template and children to end",
        )
        assert server.answer.remote()[0] == 1


def test_a_call_while_the_snapshot_is_made_waits_for_it(tmp_path: Path) -> None:
    with LocalPlane(engine="fork", profile=PROFILE) as plane:
        deploy(plane, tmp_path, 1)
        server = modal.Cls.from_name("versions", "Server", client=plane.client())()
        started = time.monotonic()
        calls = [server.answer.spawn(0.5) for _ in range(3)]
        results = modal.FunctionCall.gather(*calls)
        assert [version for version, _ in results] == [1, 1, 1]
        assert time.monotonic() - started < 30
        kinds = sorted(c.kind for c in plane.containers(all=True) if "Server" in c.function)
        assert kinds.count("snapshotting") == 1


PARTIAL = """
import modal

app = modal.App("partial")


@app.function(min_containers=MINIMUM)
def first():
    CALL


@app.function()
def second():
    return "second"
MORE
"""


@pytest.mark.slow
def test_a_deploy_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "partial.py"

    def deploy(call: str, more: str = "") -> None:
        path.write_text(PARTIAL.replace("MINIMUM", "0").replace("CALL", call).replace("MORE", more))
        plane.deploy(str(path))

    mount = 'modal.CloudBucketMount("bucket")'
    refused = f'\n\n@app.function(volumes={{"/b": {mount}}})\ndef third():\n    pass\n'
    with LocalPlane(engine="inline") as plane:
        deploy("return 1")
        first = modal.Function.from_name("partial", "first", client=plane.client())
        with pytest.raises(subprocess.CalledProcessError):
            deploy("return 2", refused)
        assert first.remote() == 1
        deploy("return 3")
        assert first.remote() == 3


@pytest.mark.slow
def test_new_code_never_runs_with_the_functions_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "partial.py"
    code = PARTIAL.replace("MINIMUM", "1").replace("MORE", "")
    with LocalPlane(engine="inline") as plane:
        path.write_text(code.replace("CALL", "return 1").replace("second", "other"))
        plane.deploy(str(path))
        path.write_text(code.replace("CALL", "return second.remote()"))
        with plane.faults.delay("AppPublish", seconds=4) as held:
            deploying = threading.Thread(target=plane.deploy, args=(str(path),))
            deploying.start()
            plane.wait_for(lambda _: held.strikes == 1, timeout_s=30)
            first = modal.Function.from_name("partial", "first", client=plane.client())
            assert first.remote() == 1
            deploying.join()
        assert first.remote() == "second"
