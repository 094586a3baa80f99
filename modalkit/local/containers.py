"""
Effects on containers: their files, their processes, their output, signals and the end.

A container is `python boot.py` in a session of its own, or a fork of the process that holds its
snapshot. Its private gRPC socket is its identity: container RPCs do not say who calls.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2

from modalkit.errors import ForkRefusedError, LocalPlaneError, SnapshotGoneError
from modalkit.local.boot import LEFT
from modalkit.local.container_files import ContainerFiles, inherited
from modalkit.local.fork_template import ForkTemplate
from modalkit.local.image_reports import ImageReports
from modalkit.local.machine import Machine
from modalkit.local.mounts import Mount
from modalkit.local.processes import descendants, memory_bytes
from modalkit.local.serving import Server
from modalkit.local.state import Container, Event, Function, State, new_id
from modalkit.local.zygotes import Zygotes

if TYPE_CHECKING:
    from modalkit.local.core import Plane
    from modalkit.local.fleet import Fleet

logger = logging.getLogger("modalkit.local")

BOOT = Path(__file__).with_name("boot.py")
DEFAULT_STARTUP_S = 300
"""Modal's: `startup_timeout` defaults to `timeout`, which defaults to this."""
MEMORY_POLL_S = 0.25
"""Between two looks at the memory of a container that has a limit."""
STREAMS = (
    ("stdout", api_pb2.FILE_DESCRIPTOR_STDOUT),
    ("stderr", api_pb2.FILE_DESCRIPTOR_STDERR),
)


class Launcher:
    """Starts and ends the processes of containers."""

    def __init__(self, plane: Plane, make_servicer: Callable[[Container], Any]) -> None:
        self.plane = plane
        self._make_servicer = make_servicer
        self.machine = Machine(plane.config.python, inherited())
        self.images = ImageReports(plane, self.machine)
        self._files = ContainerFiles(plane, self.machine)
        self._zygotes = Zygotes(plane)

    def new_container(self, function: Function, kind: str) -> Container:
        """Register a container of *function*; `run` starts it."""
        identifier = new_id("ta")
        container = Container(
            id=identifier,
            function=function,
            kind=kind,
            directory=self.plane.runtime / "t" / identifier,
            launched_at=self.plane.clock.time(),
        )
        self.plane.containers[identifier] = container
        function.containers.append(container)
        return container

    async def run(self, container: Container, fleet: Fleet) -> None:
        """Run *container* from its first file to its last process."""
        await asyncio.to_thread(self.machine.learn)
        self._files.require_mounts(container)
        self._files.allot_gpus(container)
        server: Server | None = None
        try:
            mounts = await asyncio.to_thread(self._files.lay_out, container)
            if container.is_doomed:
                return
            server = Server([self._make_servicer(container)])
            await server.start(path=str(container.directory / "plane.sock"))
            watch = self.plane.spawn(self._watch_start(container))
            self._watch_memory(container)
            if container.kind == "restored":
                await self._restore(container, mounts)
            else:
                await self._start(container, mounts, fleet)
            watch.cancel()
            container.left_orderly = (container.directory / LEFT).exists()
        finally:
            if container.returncode is None:
                self.send(container, signal.SIGKILL)
            if container.template is not None and not container.template.is_ready:
                container.template.close()
            if server is not None:
                server.close()

    def clean_up(self, container: Container) -> None:
        """Remove what a dead container leaves on disk."""
        shutil.rmtree(container.directory, ignore_errors=True)
        for view in container.views.values():
            view.close()
        shutil.rmtree(self.plane.views / container.id, ignore_errors=True)

    # ------------------------------------------------------------------ start

    async def _start(self, container: Container, mounts: list[Mount], fleet: Fleet) -> None:
        fork_socket = None
        if container.holds_snapshot:
            fork_socket = container.directory / "fork.sock"
            container.template = await ForkTemplate.listen(fork_socket)
        spec = {
            "mounts": mounts,
            "scratch": str(container.directory),
            "cwd": self._files.working_directory(container),
            "guard": self.images.guard(container, self._files.code_directories(container)),
            "fork_socket": str(fork_socket) if fork_socket else None,
            "parent": os.getpid(),
            "at_restore": self._files.environment_of_restore(container),
        }
        self.images.say_differences(container)
        self._files.write_arguments(container)
        spec_path = container.directory / "boot.json"
        spec_path.write_text(json.dumps(spec))
        with _output_pipes() as pipes:
            container.pid, ended = await self._begin(container, spec_path, pipes)
        self._kill_if_doomed(container)
        logger.info("container %s: %s start, pid %s", container.id, container.kind, container.pid)
        if container.template is not None:
            self.plane.spawn(self._await_snapshot(container, container.template, fleet))
        pumps = await self._start_pumps(container, pipes)
        container.returncode = await ended
        await self._last_output(container, pumps)

    async def _begin(
        self, container: Container, spec_path: Path, pipes: list[tuple[int, int]]
    ) -> tuple[int, Awaitable[int]]:
        """Start a process; return its pid, and what waits for its exit code."""
        facts = self.plane.image_facts(container.function.definition.image_id)
        environment = self._files.environment(container, facts)
        (_, stdout), (_, stderr) = pipes
        zygote = await self._zygotes.ready() if self.plane.config.quick_starts else None
        if zygote is not None:
            names = self._files.names(container)
            order = {"env": environment, "names": names, "spec": str(spec_path)}
            pid = await zygote.fork(container.id, order, stdout_fd=stdout, stderr_fd=stderr)
            return pid, zygote.wait_exit(container.id)
        process = await asyncio.create_subprocess_exec(
            self.plane.config.python,
            str(BOOT),
            str(spec_path),
            env=environment,
            cwd=container.directory,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        return process.pid, process.wait()

    async def _await_snapshot(
        self, container: Container, template: ForkTemplate, fleet: Fleet
    ) -> None:
        """Serve from the snapshot once it is there; if it cannot be forked, its maker serves."""
        function = container.function
        try:
            await template.wait_ready()
        except ForkRefusedError as refusal:
            self.plane.say_once(container, f"modalkit: no restore by fork: {refusal}")
            container.holds_snapshot, container.template = False, None
            if container in function.snapshot_makers:
                function.snapshot_makers.remove(container)
                function.can_fork = False
        except LocalPlaneError:
            return  # it ended before the snapshot was there
        else:
            if container.state is State.BOOTING:
                container.on(Event.SNAPSHOT)
            else:  # a newer version came meanwhile
                self.close_template(container)
        function.pulse.beat()
        fleet.scale(function)

    async def _restore(self, container: Container, mounts: list[Mount]) -> None:
        maker = container.maker
        if maker is None or maker.template is None:
            raise SnapshotGoneError("the snapshot went away before a container was restored")
        environment = self._files.environment(
            container, self.plane.image_facts(container.function.definition.image_id)
        )
        state = {
            "task_id": container.id,
            "function_id": container.function.id,
            "server_url": environment["MODAL_SERVER_URL"],
        }
        with _output_pipes() as pipes:
            container.pid = await maker.template.fork(
                container.id,
                {"env": environment, "mounts": mounts, "state": state},
                stdout_fd=pipes[0][1],
                stderr_fd=pipes[1][1],
            )
        self._kill_if_doomed(container)
        logger.info("container %s: restored, pid %s", container.id, container.pid)
        pumps = await self._start_pumps(container, pipes)
        container.returncode = await maker.template.wait_exit(container.id)
        await self._last_output(container, pumps)

    async def _start_pumps(
        self, container: Container, pipes: list[tuple[int, int]]
    ) -> list[asyncio.Task[None]]:
        # Pipes of our own: asyncio's `Process.wait()` waits for its pipes to close as well, and a
        # grandchild may hold them for ever.
        pumps = []
        for (reader, _), (name, descriptor) in zip(pipes, STREAMS, strict=True):
            stream = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(stream)
            await asyncio.get_running_loop().connect_read_pipe(
                lambda protocol=protocol: protocol,  # type: ignore[misc]
                os.fdopen(reader, "rb"),
            )
            pumps.append(self.plane.spawn(self._pump(container, stream, name, descriptor)))
        return pumps

    async def _pump(
        self, container: Container, stream: asyncio.StreamReader, name: str, descriptor: int
    ) -> None:
        """Pass output on as it comes, and keep it line by line."""
        decoder, partial = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
        while data := await stream.read(1 << 16):
            text = decoder.decode(data)
            self.plane.emit_output(container, descriptor, text)
            *lines, partial = (partial + text).split("\n")
            for line in lines:
                self.plane.record_line(container, name, line)
        if partial:
            self.plane.record_line(container, name, partial)

    async def _last_output(self, container: Container, pumps: list[asyncio.Task[None]]) -> None:
        """End what outlived the main process, which may hold the pipes, and read what is left."""
        kill_group(container)
        await asyncio.to_thread(kill_stragglers, container)
        await asyncio.wait(pumps, timeout=5)

    async def _watch_start(self, container: Container) -> None:
        definition = container.function.definition
        limit_s = definition.startup_timeout_secs or definition.timeout_secs or DEFAULT_STARTUP_S
        if await self.plane.clock.wait_until(
            container.pulse, lambda: container.has_started or not container.is_alive, limit_s
        ):
            return
        container.start_failure = api_pb2.GenericResult(
            status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT,
            exception=f"the container did not start within its startup timeout of {limit_s}s",
        )
        self.send(container, signal.SIGKILL)

    # ------------------------------------------------------------------ end

    def send(self, container: Container, number: signal.Signals) -> None:
        """Send SIGKILL to the whole container, any other signal to its main process."""
        if container.returncode is not None or not container.is_alive:
            return
        if not container.pid:
            container.is_doomed = container.is_doomed or number is signal.SIGKILL
            return
        logger.info("container %s: %s", container.id, number.name)
        if number is signal.SIGKILL:
            kill_tree(container)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(container.pid, number)

    def _kill_if_doomed(self, container: Container) -> None:
        if container.is_doomed:
            self.send(container, signal.SIGKILL)

    def interrupt(self, container: Container, *, everyone: bool) -> None:
        """Send SIGINT to the main process, or to every process of the container."""
        if container.returncode is not None or not container.is_alive:
            return  # its pid may be another's by now
        others = container.pids()[1:] if everyone else []
        self.send(container, signal.SIGINT)
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)

    def _watch_memory(self, container: Container) -> None:
        """Kill the container when it holds more than its memory limit, as the kernel does there."""
        limit_mib = container.function.definition.resources.memory_mb_max
        if not limit_mib:
            return

        async def watch() -> None:
            while container.is_alive:
                used_bytes = await asyncio.to_thread(memory_bytes, container.pids())
                if used_bytes > limit_mib << 20:
                    used = f"it held {used_bytes >> 20} MiB, its memory limit is {limit_mib} MiB"
                    container.end_cause = f"was killed, out of memory: {used}"
                    self.plane.tell(container.function.app, f"{container.id} {container.end_cause}")
                    self.send(container, signal.SIGKILL)
                    return
                await asyncio.sleep(MEMORY_POLL_S)

        self.plane.spawn(watch())

    async def interrupt_then_kill(self, container: Container, grace_s: float) -> None:
        """Send SIGINT, and SIGKILL if the container has not ended *grace_s* seconds later."""
        self.send(container, signal.SIGINT)
        if not await self.wait_exit(container, grace_s):
            self.send(container, signal.SIGKILL)

    async def wait_exit(self, container: Container, timeout_s: float) -> bool:
        """Return whether *container* ends within *timeout_s*."""
        return await self.plane.clock.wait_until(
            container.pulse, lambda: not container.is_alive, timeout_s
        )

    def close_template(self, maker: Container) -> None:
        """End the process that holds a snapshot."""
        if maker.template is not None:
            maker.template.close()
        self.send(maker, signal.SIGKILL)


def kill_tree(container: Container) -> None:
    """SIGKILL a container that has not been reaped yet: its descendants, and its process group."""
    for pid in container.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    kill_group(container)


def kill_group(container: Container) -> None:
    """SIGKILL what is left of a process group: safe when its main process was reaped."""
    if container.pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(container.pid, signal.SIGKILL)


def kill_stragglers(container: Container) -> None:
    """
    SIGKILL what left the process group of a dead container, whoever its parent is by now.

    Its mounts, whose paths hold the container's id, tell it; without private mounts, on a machine
    that forbids them, only an environment that names the container. The number of its mount
    namespace would not do: the kernel gives it to the next container at once.
    """
    mark, name = f"MODAL_TASK_ID={container.id}".encode(), f"/{container.id}/".encode()
    for pid in descendants(os.getppid()):  # the warden inherits every orphan
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            environment = (process / "environ").read_bytes().split(b"\0")
            if mark in environment or name in (process / "mountinfo").read_bytes():
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _output_pipes() -> Iterator[list[tuple[int, int]]]:
    """Make a pipe per stream; the writing ends are the new process's, the reading ends ours."""
    pipes = [os.pipe() for _ in STREAMS]
    try:
        yield pipes
    except BaseException:
        for reader, _ in pipes:
            os.close(reader)
        raise
    finally:
        for _, writer in pipes:
            os.close(writer)
