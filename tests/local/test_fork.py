"""Snapshots by fork, through the real client and entrypoint."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import modal
import pytest
import xxhash

from modalkit.errors import ForkRefusedError, LocalPlaneError, PlaneStartError, SnapshotGoneError
from modalkit.local import LocalPlane, _private, fork_child
from modalkit.local.fork_template import ForkTemplate
from modalkit.local.plane import choose_engine
from tests.support.profiles import PROFILE

from .conftest import APPS, lines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="os.fork and Linux namespaces")


@pytest.fixture(scope="module")
def plane():
    with LocalPlane(engine="fork", strict_image=True, profile=PROFILE) as running:
        running.deploy(str(APPS / "forked.py"))
        yield running


def instance(plane, name):
    return instance_of(plane, "forked", name)


def instance_of(plane, app, name):
    return modal.Cls.from_name(app, name, client=plane.client())()


def kinds(plane, name):
    return [c.kind for c in plane.containers(all=True) if c.function == f"{name}.*"]


def test_restored_containers_share_the_snapshot_and_nothing_else(plane):
    """OpenMP, DataLoader workers, files, Volumes, stubs from before the snapshot: all work."""
    trainer = instance(plane, "Trainer")
    first, second = (trainer.train.remote(name) for name in ("one", "two"))

    shared = ("made_by", "weight", "random", "vocabulary", "threads", "batches", "listed", "path")
    assert {key: first[key] for key in shared} == {key: second[key] for key in shared}
    assert (first["threads"], first["batches"], first["listed"]) == (2, 28, [])
    for own in ("pid", "task", "directory", "session"):
        assert first[own] != second[own]
    assert first["made_by"] not in {first["pid"], second["pid"]}
    assert [first["outputs"], second["outputs"]] == [["one"], ["one", "two"]]
    assert kinds(plane, "Trainer") == ["snapshotting", "restored", "restored"]


def test_a_restored_container_starts_much_faster_than_the_first(plane):
    instance(plane, "Trainer").train.remote("quick")
    found = [c for c in plane.containers(all=True) if c.function == "Trainer.*"]
    maker, first, *_ = found  # the first one waited for its snapshot: it took a cold start
    cold_s = first.first_input_at - maker.launched_at
    restored_s = min(c.first_input_at - c.launched_at for c in found if c.kind == "restored")
    assert (maker.kind, first.kind) == ("snapshotting", "restored")
    assert restored_s < cold_s / 2


def test_a_preemption_interrupts_the_main_thread_and_the_input_goes_on(plane):
    """SIGINT raises KeyboardInterrupt in user code; the next restored container finishes."""
    call = instance(plane, "Trainer").wait.spawn()
    busy = plane.wait_for(lambda cs: any(c.state == "busy" for c in cs))
    container = next(c for c in busy if c.state == "busy")
    deadline = time.monotonic() + 20
    while "WAITING" not in lines(plane, container=container.id):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    plane.preempt(container.id)

    assert call.get(timeout=60) != container.pid
    committed = plane.volume("forked").committed() / "interrupted"
    assert committed.read_text() == "True"


def test_the_end_of_a_container_does_not_touch_the_next_one(plane):
    """The kernel gives the number of a mount namespace that is gone to the next one at once."""
    pooled, before = instance(plane, "Pooled"), len(plane.containers(all=True))
    pids = [pooled.leave_a_pool_open.remote()[0] for _ in range(40)]
    launched = [c for c in plane.containers(all=True)[before:] if c.kind == "restored"]
    assert [c.pid for c in launched] == pids  # none was killed and another started
    assert {c.returncode for c in launched[:-1]} == {0}


def test_a_killed_restored_container_is_replaced_by_another(plane):
    (plane.volume("forked").committed() / "interrupted").unlink()
    call = instance(plane, "Trainer").wait.spawn()
    container = next(
        c
        for c in plane.wait_for(lambda cs: any(c.state == "busy" for c in cs))
        if c.state == "busy"
    )
    plane.kill(container.id)
    plane.wait_for(lambda cs: any(c.state == "busy" and c.id != container.id for c in cs))
    killed = next(c for c in plane.containers(all=True) if c.id == container.id)
    assert killed.returncode == -signal.SIGKILL
    call.cancel()


def test_event_loops_of_siblings_are_their_own(plane):
    """Two restored containers await at the same time, with objects made before the snapshot."""
    worker = instance(plane, "Async")
    calls = [worker.work.spawn(3) for _ in range(4)]
    results = [call.get(timeout=60) for call in calls]
    assert [values for _, values in results] == [[0, 1, 2]] * 4
    assert len({pid for pid, _ in results}) == 4


def test_a_process_that_cannot_be_forked_goes_on_by_itself(plane):
    """A thread that a child would lack: the reason is known, and the call succeeds."""
    worker = instance(plane, "WithThread")
    pid, made_by = worker.pids.remote()
    assert pid == made_by
    assert worker.pids.remote() == [pid, pid]


def test_a_restored_container_that_leaves_a_thread_pool_open_ends(plane):
    pid, made_by = instance(plane, "Pooled").leave_a_pool_open.remote()
    assert pid != made_by
    plane.wait_for(lambda cs: next(c for c in cs if c.pid == pid).returncode == 0, timeout_s=15)


def test_a_failing_hook_of_a_restored_container_reaches_the_caller(plane):
    with pytest.raises(ValueError, match="this hook fails in every restored container"):
        instance(plane, "Leaving").never.remote()


def test_the_end_of_the_template_is_the_end_of_its_containers(plane):
    """And the next call makes a new snapshot."""
    worker = instance(plane, "Async")
    template = next(
        c for c in plane.containers() if c.function == "Async.*" and c.kind == "snapshotting"
    )
    os.kill(template.pid, signal.SIGKILL)
    plane.wait_for(lambda cs: next(c for c in cs if c.id == template.id).exited_at is not None)
    assert worker.work.remote(1)[1] == [0]


# ---------------------------------------------------------------------------- the connection


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def test_a_template_that_is_closed_before_it_connects_fails_who_waits(tmp_path):
    async def scenario():
        template = await ForkTemplate.listen(tmp_path / "s")
        template.close()
        with pytest.raises(SnapshotGoneError, match="has ended"):
            await template.wait_ready()
        assert not template.is_ready
        with pytest.raises(SnapshotGoneError, match="ta-1 cannot be restored"):
            await template.fork("ta-1", {}, stdout_fd=1, stderr_fd=2)

    run(scenario())


@pytest.mark.parametrize(
    ("said", "error", "reason"),
    [
        (b'{"op": "refused", "reason": "CUDA"}\n', ForkRefusedError, "CUDA"),
        (b"", SnapshotGoneError, "has ended"),
    ],
)
def test_a_process_that_refuses_or_ends_fails_who_waits(tmp_path, said, error, reason):
    async def scenario():
        template = await ForkTemplate.listen(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as process:
            process.connect(str(tmp_path / "s"))
            process.sendall(said)
        with pytest.raises(error, match=reason):
            await template.wait_ready()
        template.close()

    run(scenario())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", SnapshotGoneError),
        (b'{"op": "failed", "container": "ta-1", "reason": "no memory"}\n', LocalPlaneError),
    ],
)
def test_an_order_fails_by_what_became_of_the_template(tmp_path, said, error):
    async def scenario():
        template = await ForkTemplate.listen(tmp_path / "s")
        process = socket.socket(socket.AF_UNIX)
        process.connect(str(tmp_path / "s"))
        process.sendall(b'{"op": "ready"}\n')
        await template.wait_ready()
        order = asyncio.create_task(template.fork("ta-1", {}, stdout_fd=1, stderr_fd=2))
        await asyncio.sleep(0)
        process.sendall(said)
        if not said:
            process.close()
        with pytest.raises(LocalPlaneError) as caught:
            await order
        assert type(caught.value) is error
        process.close()
        template.close()

    run(scenario())


# ---------------------------------------------------------------------------- refusals


def test_an_initialised_cuda_is_refused(monkeypatch):
    torch = pytest.importorskip("torch")
    loop = asyncio.new_event_loop()
    assert fork_child._refusal(loop) is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert "CUDA is initialised" in fork_child._refusal(loop)
    loop.close()


def test_a_foreign_event_loop_is_refused():
    assert "cannot be repaired" in fork_child._refusal(asyncio.BaseEventLoop())


OLD_LIBGOMP = """
import asyncio, ctypes, sys
from modalkit.local import fork_child
ctypes.CDLL(sys.argv[1])
print(fork_child._refusal(asyncio.new_event_loop()))
"""


def test_an_openmp_that_cannot_end_its_threads_is_refused(tmp_path):
    old = tmp_path / "libgomp-old.so.1"  # any library without omp_pause_resource_all
    shutil.copy(xxhash._xxhash.__file__, old)
    command = [sys.executable, "-c", OLD_LIBGOMP, str(old)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{old} cannot end its threads before a fork" in done.stdout


def test_background_threads_that_may_vanish_are_named(capsys):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="monitor", daemon=True)
    thread.start()
    loop = asyncio.new_event_loop()
    assert fork_child._refusal(loop) is None
    said = capsys.readouterr().err
    assert "background threads are not part of a fork snapshot: " in said
    assert "monitor" in said
    stop.set()
    thread.join()
    loop.close()


# ---------------------------------------------------------------------------- modal's names


def test_the_installed_modal_has_every_private_name():
    assert _private.probe() is None


def test_a_name_that_modal_drops_is_reported(monkeypatch):
    import modal.client
    from modal._runtime import user_code_imports

    monkeypatch.delattr(modal.client._Client, "_prep_for_snapshot")
    monkeypatch.setattr(user_code_imports, "maybe_snapshot", lambda function_def: None)
    reason = _private.probe()
    assert f"modal {modal.__version__} lacks modal.client._Client._prep_for_snapshot" in reason
    assert "maybe_snapshot(function_def, snapshot_context_manager" in reason


def test_auto_is_inline_where_modal_lacks_a_name_and_fork_says_so(monkeypatch):
    assert choose_engine("auto") == "fork"
    monkeypatch.setattr(_private, "NAMES", (*_private.NAMES, ("modal.client", "_Client._gone")))
    assert choose_engine("auto") == "inline"
    with pytest.raises(PlaneStartError, match=r"_Client\._gone.*use engine='inline'"):
        choose_engine("fork")


def test_no_other_module_reaches_into_modal():
    """One file to repair after a release of modal; boot.py names the entrypoint, to run it."""
    reaching = set()
    for path in Path(_private.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            names += [getattr(node, "module", None), getattr(node, "value", None)]
            if any(isinstance(name, str) and name.startswith("modal._") for name in names):
                reaching.add(path.name)
    assert reaching == {"_private.py", "boot.py"}


def test_orders_wait_for_room_in_the_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        template = await ForkTemplate.listen(tmp_path / "s")
        process = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        process.connect(str(tmp_path / "s"))
        process.sendall(b'{"op": "ready"}\n')
        await template.wait_ready()
        order = {"text": "x" * 20_000}
        names = [f"ta-{number}" for number in range(100)]
        orders = [
            asyncio.create_task(template.fork(name, order, stdout_fd=1, stderr_fd=2))
            for name in names
        ]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in orders)

        def answer() -> None:
            for number, name in enumerate(names):
                header, descriptors, _, _ = socket.recv_fds(process, 4, 2, socket.MSG_WAITALL)
                process.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)
                for descriptor in descriptors:
                    os.close(descriptor)
                text = json.dumps({"op": "forked", "container": name, "pid": number})
                process.sendall(text.encode() + b"\n")

        await asyncio.to_thread(answer)
        assert await asyncio.gather(*orders) == list(range(100))
        template.close()
        process.close()

    run(scenario())


def test_an_order_that_waits_for_room_ends_with_its_template(tmp_path):
    async def scenario():
        template = await ForkTemplate.listen(tmp_path / "s")
        process = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        process.connect(str(tmp_path / "s"))
        process.sendall(b'{"op": "ready"}\n')
        await template.wait_ready()
        orders = [
            asyncio.create_task(template.fork(f"ta-{i}", {}, stdout_fd=1, stderr_fd=2))
            for i in range(1000)
        ]
        await asyncio.sleep(0.1)
        template.close()
        ends = await asyncio.gather(*orders, return_exceptions=True)
        assert {type(end) for end in ends} == {SnapshotGoneError}
        process.close()

    run(scenario())


BROKEN = """
import modal

app = modal.App("broken")


@app.cls(enable_memory_snapshot=True, env={"PYTHONHOME": "/nowhere"})
class Broken:
    @modal.method()
    def f(self):
        pass
"""


@pytest.mark.slow
def test_a_maker_that_dies_before_it_connects_leaves_no_socket(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    with LocalPlane(engine="fork", profile=PROFILE) as plane:
        plane.deploy(str(path))
        call = instance_of(plane, "broken", "Broken").f.spawn()
        plane.wait_for(lambda found: any(c.kind == "snapshotting" and c.returncode for c in found))
        call.cancel()
        plane.wait_for(lambda found: not any(c.is_alive for c in found))
        directory = plane.env["MODAL_SERVER_URL"].removeprefix("unix://").rpartition("/")[0]
        sockets = Path("/proc/net/unix").read_text().splitlines()
        assert not [line for line in sockets if directory in line and "fork.sock" in line]
