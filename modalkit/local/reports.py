"""What an owner is told about his plane; both ends of the control socket use these values."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class ContainerInfo:
    """
    One container, as it stood when it was asked for. Times are Unix seconds.

    Attributes:
        kind: "cold"; "snapshotting": it makes the snapshot; "restored" from one.
        state: "booting", "template", "idle", "busy", "draining" or "exited".
        inputs: Ids of the inputs that it is running.
        launched_at: When the plane began to start it.
        first_input_at: When it was given its first input.
        returncode: As in `subprocess.Popen`: negative for a signal.
        gpu: What its function asks for, "H100:2"; "" for none.
        gpus: Those of this machine that it was given.
    """

    id: str
    app: str
    function: str
    pid: int
    kind: str
    state: str
    inputs: list[str]
    launched_at: float
    first_input_at: float | None
    exited_at: float | None
    returncode: int | None
    gpu: str
    gpus: list[str]

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.state != "exited"


@attrs.frozen
class LogLine:
    """One line that a container wrote to "stdout" or "stderr"."""

    index: int
    container: str
    stream: str
    text: str


@attrs.frozen
class Rpc:
    """
    One RPC that the plane answered; times are the plane's.

    Attributes:
        index: Its number, from the plane's start on.
        time: Unix seconds when it arrived.
        caller: "client", or the id of a container.
        request: What was asked, without secrets; bytes as their length and digest.
        reply: What was answered; None for an error, or while there is none yet. Of a stream, how
            many messages it had.
        status: Name of the gRPC status; "PENDING" while there is none yet.
        duration_s: Seconds until it was answered.
    """

    index: int
    time: float
    caller: str
    name: str
    request: dict[str, Any]
    reply: dict[str, Any] | None
    status: str
    duration_s: float


@attrs.frozen
class PackageInfo:
    """
    One distribution that an image installs.

    Attributes:
        asked: What the image asks of its version, such as "==2.9.1"; "" for nothing.
        here: The version that the containers' interpreter has; None where it lacks it.
        differs: It is missing here, or its version is not the one asked for by `==`.
    """

    name: str
    asked: str
    here: str | None
    differs: bool


@attrs.frozen
class ImageInfo:
    """
    One image that an app uses, as it was recorded; none is built here.

    Attributes:
        functions: "app.function" of those that use it.
        base: The image that it begins with.
        python: The series of its Python; None where it cannot be told.
        python_here: The version of the containers' interpreter.
        files: Absolute paths of the files that the app adds.
        not_run: Build steps that have no effect here.
        unread: Those that may install what cannot be named.
    """

    id: str
    functions: list[str]
    base: str
    python: str | None
    python_here: str
    packages: list[PackageInfo]
    env: dict[str, str]
    workdir: str
    files: list[str]
    not_run: list[str]
    unread: list[str]
