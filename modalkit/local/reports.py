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
