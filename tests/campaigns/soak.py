"""
Kill clients and containers of a busy plane at random moments; nothing may be lost or left.

    python -m tests.campaigns.soak [--kills 200] [--seed N] [--profile lenient]

What must hold, whatever is killed:
- every input that was accepted ends, with one result or with a failure whose cause happened;
- no input has two attempts at once, runs again while its last attempt lives, or is answered by
  an attempt that had lost it;
- a client that is killed takes its app with it, a container its descendants and its directory;
- what was committed to a Volume, or put into a Dict or a Queue, stays;
- the plane reports no bug of its own; when the plane ends, no process and no file is left.

Attempts leave their evidence outside of the plane (`soak_app`). The talk is on stderr; the last
line of stdout is JSON. A campaign proves what its mutants prove: see `soak_mutants.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import attrs
import click
import modal
from grpclib.client import Channel
from modal_proto import api_grpc, api_pb2

from modalkit.errors import LocalPlaneError
from modalkit.local import LocalPlane

from .soak_app import born

APP = Path(__file__).with_name("soak_app.py")
SPAWNED = ("work", "flaky", "overrun", "family", "write", "remember", "nested", "Snapped.work")
AWAITED = ("map", "numbers")
COUNT = 8
BACKLOG = 12
"""Inputs that are unfinished at any time."""
MAX_LOSSES = 8
"""As modal's; one more, and the call fails."""
CALLER = """
import sys, modal
modal.Function.from_name("soak", "work").remote(*sys.argv[1:], 2.0)
"""


@attrs.define
class Victim:
    """A process that is a client of the plane."""

    name: str
    process: subprocess.Popen[bytes]
    due: float
    killed_at: float | None = None


class Soak:
    """A busy plane, what is asked of it, and what is wrong."""

    def __init__(
        self, plane: LocalPlane, directory: Path, rng: random.Random, patience_s: float
    ) -> None:
        self.violations: list[str] = []
        self.kills: Counter[str] = Counter()
        self._plane = plane
        self._directory = directory
        self._rng = rng
        self._patience_s = patience_s
        self._client = plane.client()
        self._runtime = Path(plane.env["MODAL_SERVER_URL"].removeprefix("unix://")).parent
        self._calls: dict[str, modal.FunctionCall[Any]] = {}
        self._futures: dict[str, Future[Any]] = {}
        self._clients: list[Victim] = []
        self._number = 0

    # ------------------------------------------------------------------ what is asked of it

    def ask(self, kind: str) -> None:
        """Have the plane do one piece of work."""
        key = self._key(kind)
        path = str(self._directory)
        if kind == "map":
            names = [f"{key}-{number}" for number in range(COUNT)]
            paths = [path] * COUNT
            work = self._function("work")
            call = lambda: list(work.map(paths, names, return_exceptions=True))  # noqa: E731
            self._futures[key] = in_background(call)
        elif kind == "numbers":
            numbers = self._function("numbers")
            self._futures[key] = in_background(lambda: list(numbers.remote_gen(path, key, COUNT)))
        elif kind == "Snapped.work":
            snapped = modal.Cls.from_name("soak", "Snapped", client=self._client)()
            self._calls[key] = snapped.work.spawn(path, key)
        else:
            self._calls[key] = self._function(kind).spawn(path, key)

    def ask_anything(self) -> None:
        """Have it do something, unless it has enough to do."""
        said = self._said()
        known = {event["key"] for event in said if event["event"] == "done"}
        waiting = [key for key in self._calls if key not in known]
        waiting += [key for key, future in self._futures.items() if not future.done()]
        if len(waiting) < BACKLOG:
            self.ask(self._rng.choice(SPAWNED + AWAITED))

    def start_client(self, kind: str) -> None:
        """Start a `modal run` of an app of its own, or a process that waits for `.remote()`."""
        name = self._key(kind)
        if kind == "run":
            target = [f"{APP}::main", "--directory", str(self._directory), "--key", name]
            command = [sys.executable, "-P", "-m", "modal", "run", *target]
        else:
            command = [sys.executable, "-P", "-c", CALLER, str(self._directory), name]
        process = subprocess.Popen(
            command,
            env={**os.environ, **self._plane.env, "SOAK_APP": name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        due = time.monotonic() + self._rng.uniform(0.5, 6.0 if kind == "run" else 3.0)
        self._clients.append(Victim(name, process, due))

    def _key(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number}"

    def _function(self, name: str) -> modal.Function[..., Any, Any]:
        return modal.Function.from_name("soak", name, client=self._client)

    # ------------------------------------------------------------------ kills

    def rage(self, kills: int, say: Callable[[str], object]) -> None:
        """Kill *kills* processes while all kinds of work go on."""
        for kind in SPAWNED + AWAITED:
            self.ask(kind)
        told = 0
        while self.kills.total() < kills:
            self.ask_anything()
            living = [c for c in self._clients if c.killed_at is None and c.process.poll() is None]
            if len(living) < 2:
                self.start_client(self._rng.choice(["run", "remote"]))
            time.sleep(self._rng.uniform(0.05, 0.5))
            due = [client for client in living if client.due < time.monotonic()]
            if due:
                self.kill_client(due[0])
            else:
                self.kill_container()
            self.look()
            if self.kills.total() >= told + 20:
                told = self.kills.total()
                say(f"{told}/{kills} kills: {dict(self.kills)}")

    def kill_client(self, client: Victim) -> None:
        """SIGKILL a client, unless it is through."""
        if client.process.poll() is None:
            client.process.kill()
            client.process.wait()
            client.killed_at = time.monotonic()
            self.kills[client.name.partition("-")[0]] += 1

    def kill_container(self, among: Collection[str] | None = None) -> bool:
        """SIGKILL the main process of a container, and return whether there was one."""
        found = [c for c in self._plane.containers() if c.pid]
        found = [c for c in found if among is None or c.id in among]
        if not found:
            return False
        chosen = self._rng.choice(found)
        is_killed = kill(chosen.pid, f"MODAL_SERVER_URL=unix://{self._runtime}/".encode())
        self.kills["container"] += is_killed
        return is_killed

    def kill_one(self, kind: str, event: str = "begun") -> None:
        """Ask for *kind*, and SIGKILL the first container of which there is such an *event*."""
        self.ask(kind)
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            found = {e["container"] for e in self._said() if is_event(e, event, kind)}
            if self.kill_container(found):
                return
            time.sleep(0.02)
        self._wrong(f"no input of {kind} was {event} within {self._patience_s:g} s")

    def kill_run_when_begun(self) -> None:
        """Start a `modal run` and SIGKILL it when a container of its own is at work."""
        self.start_client("run")
        client = self._clients[-1]
        deadline = time.monotonic() + self._patience_s
        while not any(is_event(event, "begun", client.name) for event in self._said()):
            if time.monotonic() > deadline:
                self._wrong(f"{client.name} began nothing within {self._patience_s:g} s")
                return
            time.sleep(0.05)
        self.kill_client(client)

    # ------------------------------------------------------------------ what must hold

    def look(self) -> None:
        """Check what must hold at any time."""
        containers = self._plane.containers(all=True)
        silent = {c.name for c in self._clients if self._is_long_dead(c)}
        for container in containers:
            if container.is_alive and container.app in silent:
                self._wrong(f"{container.id} outlives its client, {container.app}")
        for event in self._said():
            if event["event"] == "twice":
                self._wrong(f"{event['key']} has two attempts at once")
        for orphan in self._orphans(self._patience_s):
            self._wrong(orphan)

    def _orphans(self, ended_s_ago: float = 0.0) -> list[str]:
        """Name what containers left behind that ended some time ago."""
        ended = time.time() - ended_s_ago
        exited = {c.id for c in self._plane.containers(all=True) if (c.exited_at or ended) < ended}
        return [
            f"{event['container']} has ended, its process {event['pid']} has not"
            for event in self._said()
            if event["event"] == "child" and event["container"] in exited and is_running(event)
        ]

    def settle(self) -> None:
        """Wait for all that was asked, and check what must hold when nobody kills any more."""
        deadline = time.monotonic() + self._patience_s
        results: dict[str, Any] = {}
        for key, call in self._calls.items():
            results[key] = outcome(lambda s, call=call: call.get(s), deadline)
        for key, future in self._futures.items():
            results[key] = outcome(future.result, deadline)
        for key, result in results.items():
            if key.startswith("map-") and isinstance(result, list):
                for number, part in enumerate(result):
                    self._check(f"{key}-{number}", part)
            else:
                self._check(key, result)
        for client in self._clients:
            client.process.kill()
            client.process.wait()
            client.killed_at = client.killed_at or time.monotonic()
        self._until(self._at_work, lambda names: f"still at work when all has ended: {names}")
        self._check_outputs()
        self._check_attempts()
        self._check_objects()
        self._until(self._apps_left, lambda names: f"outlive their clients: {names}")
        self._until(self._orphans, "; ".join)
        self._until(self._directories_left, lambda names: f"directories are left: {names}")
        self.look()

    def _check(self, key: str, result: Any) -> None:
        """Check one result: the answer of an attempt, or a failure whose cause happened."""
        kind = key.partition("-")[0]
        if type(result) is TimeoutError:
            self._wrong(f"{key} has no result {self._patience_s:g} s after the last kill")
        elif isinstance(result, BaseException):
            if not self._has_cause(kind, result):
                self._wrong(f"{key} failed without a cause: {result!r}")
        elif kind == "numbers":
            if result != list(range(COUNT)):
                self._wrong(f"{key} yielded {result}")
        elif result == "late":
            self._wrong(f"{key} was answered by an attempt that had lost it")
        elif (key, result) not in {(e["key"], e.get("token")) for e in self._said()}:
            self._wrong(f"{key} was answered {result!r}, which no attempt said")

    def _has_cause(self, kind: str, failure: BaseException) -> bool:
        """Tell whether enough containers were lost, or an attempt could time out."""
        if isinstance(failure, modal.exception.FunctionTimeoutError):
            return kind == "overrun"
        function = "work" if kind == "map" else kind.partition(".")[0]
        dead = [c for c in self._plane.containers(all=True) if c.returncode]
        losses = sum(c.function.startswith(function) for c in dead)
        return isinstance(failure, modal.exception.InternalFailure) and losses > MAX_LOSSES

    def _check_outputs(self) -> None:
        """Check that each spawned input has one output, as the plane itself keeps them."""
        identifiers = {key: call.object_id for key, call in self._calls.items()}
        replies = asyncio.run(outputs(self._runtime / "plane.sock", identifiers))
        for key, found in replies.items():
            if len(found) != 1:
                self._wrong(f"{key} has {len(found)} outputs: {found}")

    def _check_attempts(self) -> None:
        """Check that an input ran again only when its last attempt was over."""
        dead = {c.id for c in self._plane.containers(all=True) if c.returncode}
        last: dict[str, str] = {}
        ended: dict[str, set[str]] = defaultdict(set)
        for event in self._said():
            key, container = event["key"], event["container"]
            if event["event"] in ("failed", "late"):
                ended[key].add(container)
            elif event["event"] == "begun":
                before = last.get(key)
                if before is not None and before not in dead | ended[key]:
                    self._wrong(f"{key} ran again though its attempt in {before} was not lost")
                last[key] = container

    def _check_objects(self) -> None:
        """Check that a Dict and a Queue have what they were told."""
        told = {e["key"] for e in self._said() if e["event"] == "remembered"}
        made = {"create_if_missing": True, "client": self._client}
        facts = modal.Dict.from_name("soak-facts", **made)
        line = modal.Queue.from_name("soak-line", **made)
        for name, found in (("Dict", set(facts.keys())), ("Queue", set(line.iterate()))):
            if told - found:
                self._wrong(f"a {name} has lost {sorted(told - found)}")

    def _at_work(self) -> list[str]:
        return [c.id for c in self._plane.containers() if c.state not in ("idle", "template")]

    def _apps_left(self) -> list[str]:
        names = {client.name for client in self._clients}
        return sorted({c.app for c in self._plane.containers() if c.app in names})

    def _directories_left(self) -> list[str]:
        live = {container.id for container in self._plane.containers()}
        views = self._directory / "state" / ".views" / self._runtime.name
        found = [*(self._runtime / "t").iterdir(), *views.iterdir()]
        return sorted(str(path) for path in found if path.name not in live)

    def _until(self, left: Callable[[], list[str]], text: Callable[[list[str]], str]) -> None:
        deadline = time.monotonic() + self._patience_s
        while (names := left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if names:
            self._wrong(text(names))

    def check_end(self, said_by_plane: str) -> None:
        """Check what must hold when the plane has ended."""
        tree = self._directory / "state" / "volumes" / "soak-data" / "committed"
        for name in {e["key"] for e in self._said() if e["event"] == "committed"}:
            data = (tree / name).read_bytes() if (tree / name).exists() else b""
            if not data or hashlib.sha256(data[32:]).digest() != data[:32]:
                self._wrong(f"{name} was committed and is {'broken' if data else 'gone'}")
        left = [e["pid"] for e in self._said() if e["event"] == "child" and is_running(e)]
        left += processes_with(f"MODAL_SERVER_URL=unix://{self._runtime}/t/".encode())
        if left:
            self._wrong(f"processes are left: {left}")
        names = [p.name for p in (self._directory / "tmp").iterdir()]
        names += [p.name for p in (self._directory / "state").glob(".views")]
        if names:
            self._wrong(f"files are left: {names}")
        if "bug in the local plane" in said_by_plane or "Traceback" in said_by_plane:
            self._wrong(f"the plane reports a bug: {said_by_plane[-2000:]}")

    def _said(self) -> list[dict[str, Any]]:
        lines = (self._directory / "evidence").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def _is_long_dead(self, client: Victim) -> bool:
        return client.killed_at is not None and (
            time.monotonic() - client.killed_at > self._patience_s
        )

    def _wrong(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)


def is_event(event: dict[str, Any], name: str, kind: str) -> bool:
    return event["event"] == name and event["key"].startswith(kind)


def is_running(event: dict[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{event['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and born(event["pid"]) == event["born"]
    return False


def processes_with(mark: bytes) -> list[int]:
    """Return the processes whose environment holds *mark*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def kill(pid: int, mark: bytes) -> bool:
    """SIGKILL a process whose environment holds *mark*: its number may be another's by now."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                return True
        finally:
            os.close(descriptor)
    return False


def in_background(call: Callable[[], Any]) -> Future[Any]:
    """Run *call* in a thread that nobody has to wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - the result is the error
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def outcome(wait: Callable[[float], Any], deadline: float) -> Any:
    """Return what comes until *deadline*: a result, or the exception."""
    try:
        return wait(max(0.1, deadline - time.monotonic()))
    except Exception as error:  # noqa: BLE001 - the result is the error
        return error


async def outputs(socket: Path, identifiers: dict[str, str]) -> dict[str, list[int]]:
    """Return the status of every output of each call, as the plane keeps them."""
    channel = Channel(path=str(socket))
    stub = api_grpc.ModalClientStub(channel)
    found = {}
    for key, identifier in identifiers.items():
        request = api_pb2.FunctionGetOutputsRequest(
            function_call_id=identifier, last_entry_id="0-0", timeout=0
        )
        reply = await stub.FunctionGetOutputs(request, timeout=10)
        found[key] = [output.result.status for output in reply.outputs]
    channel.close()
    return found


@contextlib.contextmanager
def busy_plane(rng: random.Random, patience_s: float, profile: str) -> Iterator[Soak]:
    """Start a plane in a directory of its own, yield the soak of it, and check the end."""
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    for name in ("locks", "tmp"):
        (directory / name).mkdir()
    (directory / "evidence").touch()
    with environment(TMPDIR=str(directory / "tmp")):
        plane = LocalPlane(
            directory / "state",
            engine="fork",
            grace_s=2,
            profile=f"{profile},same_input_twice=never",
            quick_starts=False,  # a victim is told by the environment that it was started with
        )
        with stderr_into(directory / "stderr"):
            plane.__enter__()
        try:
            plane.deploy(str(APP))
            soak = Soak(plane, directory, rng, patience_s)
            yield soak
            soak.settle()
        finally:
            plane.__exit__(None, None, None)
    soak.check_end((directory / "stderr").read_text())
    if not soak.violations:
        shutil.rmtree(directory)
    else:
        click.echo(f"the evidence is in {directory}", err=True)


@contextlib.contextmanager
def environment(**changes: str) -> Iterator[None]:
    """Change variables, and what `tempfile` made of them."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    tempfile.tempdir = None
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        tempfile.tempdir = None


@contextlib.contextmanager
def stderr_into(path: Path) -> Iterator[None]:
    """Let what is started here write its stderr to a file."""
    kept = os.dup(2)
    with path.open("w") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


SCENES: dict[str, Callable[[Soak], object]] = {
    "late": lambda soak: [soak.ask("overrun") for _ in range(2)],
    "lost": lambda soak: soak.kill_one("work"),
    "commit": lambda soak: soak.kill_one("write", "committed"),
    "remember": lambda soak: soak.ask("remember"),
    "family": lambda soak: soak.kill_one("family"),
    "client": lambda soak: soak.kill_run_when_begun(),
}
"""Single misfortunes, each of which a planted defect turns into a violation."""


@click.command()
@click.option("--kills", default=200, show_default=True, help="SIGKILLs at random moments.")
@click.option("--seed", type=int, help="Of the choices; a new one by default, and printed.")
@click.option("--profile", default="lenient", show_default=True, help="See LocalPlane.")
@click.option("--patience", "patience_s", default=90.0, show_default=True, help="Seconds.")
@click.option("--scene", type=click.Choice(sorted(SCENES)), help="One misfortune only.")
def main(kills: int, seed: int | None, profile: str, patience_s: float, scene: str | None) -> None:
    """Kill clients and containers of a busy plane; nothing may be lost or left."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    started = time.monotonic()
    violations = soak(kills, random.Random(seed), patience_s, profile, scene)
    for violation in violations:
        click.echo(f"WRONG {violation}", err=True)
    click.echo(f"{time.monotonic() - started:.0f} s", err=True)
    print(json.dumps({"kills": kills, "violations": len(violations)}))
    sys.exit(1 if violations else 0)


def soak(
    kills: int, rng: random.Random, patience_s: float, profile: str, scene: str | None = None
) -> Sequence[str]:
    """Run the campaign, or one *scene*, and return what was wrong."""
    try:
        with busy_plane(rng, patience_s, profile) as running:
            if scene is None:
                running.rage(kills, lambda text: click.echo(text, err=True))
            else:
                SCENES[scene](running)
    except LocalPlaneError as error:
        return [f"the plane itself: {error}"]
    return running.violations


if __name__ == "__main__":
    main()
