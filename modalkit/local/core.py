"""
The plane's heart: its configuration, what it knows, and the background tasks that are its own.

Handlers and effects get one `Plane` and find each other through it. No I/O here but directories.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from modal_proto import api_pb2

from modalkit.local.clock import Clock, Pulse
from modalkit.local.image_commands import ImageFacts, Layer, parse
from modalkit.local.keep import Keep
from modalkit.local.object_store import ObjectStore, object_directory
from modalkit.local.processes import views_directory
from modalkit.local.reports import LogLine
from modalkit.local.state import App, Call, Container, Function, Input
from modalkit.local.switches import Switches
from modalkit.local.volumes import VolumeRegistry

logger = logging.getLogger("modalkit.local")

Engine = Literal["inline", "fork"]

ENVIRONMENT = "main"
"""The one environment; clients say "" and containers "main" for the same object."""
IMAGE_BUILDER = "2025.06"
"""The image builder that the plane claims: it decides which commands the client sends."""


def _switches(given: Switches | dict[str, str]) -> Switches:
    return Switches(**given) if isinstance(given, dict) else given


@attrs.frozen(kw_only=True)
class Config:
    """What the owner of a plane asked for; it travels to the plane's process as JSON."""

    runtime: str
    """Directory with the sockets and the tasks; 0700, removed at the end."""
    state: str
    """Directory with Volumes, objects, uploads, and what is kept of deployed apps."""
    engine: Engine = "inline"
    snapshots: bool | None = None
    """None: deployed apps only, as on Modal."""
    strict_image: bool = False
    quick_starts: bool = False
    """Fork cold containers from a process that has imported modal; see `zygote`."""
    grace_s: float = 30.0
    python: str = sys.executable
    echo_logs: bool = False
    switches: Switches = attrs.field(factory=Switches, converter=_switches)
    """How the plane behaves where Modal's behaviour is unknown."""
    background_commit_s: float = 5.0
    """Seconds between background commits of a running container's Volumes; 0 for none."""
    provides: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """Distributions that base images bring which cannot be read."""
    heartbeat_timeout_s: float = 300.0
    """Silence after which a container is taken for dead; Modal's limit is not public."""
    gpus: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """Indices or UUIDs of this machine's GPUs that containers may use; none is visible else."""


@attrs.frozen
class Image:
    """One recorded image: its last layer, on top of others."""

    id: str
    layer: Layer
    bases: Mapping[str, str] = attrs.field(factory=dict)
    """Image ids by the names that the layer's `FROM` lines give them."""


@attrs.frozen
class Mount:
    """Uploaded files, or one of Modal's own mounts, which has a name and no files here."""

    files: tuple[api_pb2.MountFile, ...]
    name: str = ""


@attrs.define(eq=False)
class Plane:
    """Everything one plane knows."""

    config: Config
    modal_version: str
    clock: Clock = attrs.field(factory=Clock)
    apps: dict[str, App] = attrs.field(factory=dict)
    deployed: dict[str, str] = attrs.field(factory=dict)
    """App id by name."""
    functions: dict[str, Function] = attrs.field(factory=dict)
    variants: dict[tuple[str, bytes, bytes], str] = attrs.field(factory=dict)
    classes: dict[str, str] = attrs.field(factory=dict)
    """Service function id ("" until published) by class id."""
    calls: dict[str, Call] = attrs.field(factory=dict)
    expired: set[str] = attrs.field(factory=set)
    """Ids of spawned calls whose results were given up."""
    inputs: dict[str, Input] = attrs.field(factory=dict)
    containers: dict[str, Container] = attrs.field(factory=dict)
    mounts: dict[str, Mount] = attrs.field(factory=dict)
    images: dict[str, Image] = attrs.field(factory=dict)
    _facts: dict[str, ImageFacts] = attrs.field(factory=dict)
    queue_pulses: defaultdict[str, Pulse] = attrs.field(factory=lambda: defaultdict(Pulse))
    """Beats at each put into the Queue of this id, and when it is deleted."""
    log_lines: list[LogLine] = attrs.field(factory=list)
    http_url: str = ""
    is_closing: bool = False
    _tasks: set[asyncio.Task[Any]] = attrs.field(factory=set)
    volumes: VolumeRegistry = attrs.field(
        default=attrs.Factory(
            lambda self: VolumeRegistry(Path(self.config.state) / "volumes"), takes_self=True
        )
    )
    objects: ObjectStore = attrs.field(
        default=attrs.Factory(
            lambda self: ObjectStore(object_directory(self.config.state)), takes_self=True
        )
    )
    """Dicts, Queues and Secrets."""
    keep: Keep = attrs.field(
        default=attrs.Factory(
            lambda self: Keep(Path(self.config.state) / "plane.db"), takes_self=True
        )
    )

    @property
    def runtime(self) -> Path:
        """The directory with sockets and tasks."""
        return Path(self.config.runtime)

    @property
    def file_store(self) -> Path:
        """Directory of uploaded mount files, each named by the sha256 of its content, in hex."""
        return Path(self.config.state) / "files"

    @property
    def blob_store(self) -> Path:
        """Directory of uploaded payloads."""
        return Path(self.config.state) / "blobs"

    @property
    def views(self) -> Path:
        """The containers' private Volume views."""
        return views_directory(self.config.state, self.config.runtime)

    def hidden_values(self) -> list[str]:
        """Return what must not be shown to anybody: Secrets, and the path that opens the blobs."""
        return [*self.objects.secret_values(), self.http_url.rpartition("/")[2]]

    def blob_url(self, relative: str) -> str:
        """Return the URL under which the plane's own HTTP server offers *relative*."""
        return f"{self.http_url}/{relative}"

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run *work* in the background; an error in it is logged, never lost."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("bug in the local plane", exc_info=error)

    def image_facts(self, image_id: str) -> ImageFacts:
        """Return what the recorded commands of an image and of its bases say."""
        if image_id not in self.images:
            return ImageFacts()
        if image_id not in self._facts:
            image = self.images[image_id]
            bases = {name: self.image_facts(base) for name, base in image.bases.items()}
            self._facts[image_id] = parse(
                attrs.evolve(image.layer, bases=bases),
                lambda file: (self.file_store / file.sha256_hex).read_text(errors="replace"),
            )
        return self._facts[image_id]

    def takes_snapshots(self, function: Function) -> bool:
        """Whether containers of *function* start from a snapshot here."""
        if not function.definition.checkpointing_enabled:
            return False
        if self.config.snapshots is None:
            return function.app.app_state == api_pb2.APP_STATE_DEPLOYED
        return self.config.snapshots

    def emit(self, app: App, **fields: Any) -> None:
        """Append one batch to the logs of *app*."""
        app.logs.append(api_pb2.TaskLogsBatch(entry_id=f"{len(app.logs) + 1}-0", **fields))
        app.pulse.beat()

    def emit_output(self, container: Container, descriptor: int, text: str) -> None:
        """Append output of a container to the logs of its app."""
        function = container.function
        item = api_pb2.TaskLogs(data=text, file_descriptor=descriptor, timestamp=time.time())  # type: ignore[arg-type]
        if len(container.running) == 1:  # with several at once nobody knows whose it is
            [running] = container.running.values()
            item.input_id, item.function_call_id = running.id, running.call.id
        self.emit(
            function.app,
            task_id=container.id,
            function_id=function.id,
            root_function_id=(function.base or function).id,
            items=[item],
        )

    def tell(self, app: App, line: str) -> None:
        """Show a line of the plane's own in the logs of *app*."""
        item = api_pb2.TaskLogs(
            data=f"modalkit: {line}\n",
            file_descriptor=api_pb2.FILE_DESCRIPTOR_STDERR,
            timestamp=time.time(),  # of this machine, as that of all output: nobody moves it
        )
        self.emit(app, items=[item])
        self.log_lines.append(LogLine(len(self.log_lines), "", "stderr", f"modalkit: {line}"))

    def say_once(self, container: Container, line: str) -> None:
        """Show *line* in the app's logs, for the first container that it is true of."""
        app = container.function.app
        if line not in app.said:
            app.said.add(line)
            self.emit_output(container, api_pb2.FILE_DESCRIPTOR_STDERR, line + "\n")
            self.record_line(container, "stderr", line)

    def record_line(self, container: Container, stream: str, text: str) -> None:
        """Keep one finished line of output for `LocalPlane.logs`."""
        if stream == "stderr":
            container.last_words.append(text)
        self.log_lines.append(LogLine(len(self.log_lines), container.id, stream, text))
        if self.config.echo_logs:
            sys.stderr.write(f"{container.id} {text}\n")


def default_max_containers() -> int:
    """
    Return the limit where the app gives none.

    Eight torch imports on two cores take so long that innocent timeouts fire.
    """
    return max(1, os.cpu_count() or 1)
