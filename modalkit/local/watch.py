"""Waiting, on the owner's side, for what containers write and do."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from modalkit.errors import LocalPlaneError, UnknownContainerError
from modalkit.local.claim import POLL_S
from modalkit.local.reports import ContainerInfo, LogLine

if TYPE_CHECKING:
    from modalkit.local.plane import RunningPlane

LINES_SHOWN = 10

Trigger = str | re.Pattern[str] | float | Callable[[ContainerInfo], bool]
"""What to wait for: a line's text, seconds of running an input, or a predicate."""


class Watch:
    """What one owner waits for in his plane."""

    def __init__(self, plane: RunningPlane) -> None:
        self._plane = plane
        self._since = 0
        """Lines before this one have had their effect."""

    def line(self, text: str | re.Pattern[str], since: int, timeout_s: float) -> LogLine:
        """Return the first line from number *since* on in which *text* is found."""
        deadline = time.monotonic() + timeout_s
        position = since
        while True:
            for line in self._plane.logs(position):
                position = line.index + 1
                if _is_in(text, line.text):
                    return line
            if time.monotonic() > deadline:
                raise self._in_vain(text, timeout_s)
            time.sleep(POLL_S)

    def strike(
        self,
        after: Trigger,
        container: str | None,
        timeout_s: float,
        strike: Callable[[str], object],
    ) -> ContainerInfo:
        """Call *strike* with the first live container to which *after* happens; return it."""
        deadline = time.monotonic() + timeout_s
        begun: dict[tuple[str, str], float] = {}
        while True:
            for found in self._happened(after, begun):
                if container not in (None, found.id):
                    continue
                with contextlib.suppress(UnknownContainerError):  # it ended in this moment
                    strike(found.id)
                    return found
            if container is not None and all(c.id != container for c in self._plane.containers()):
                raise UnknownContainerError(f"no live container {container!r}")
            if time.monotonic() > deadline:
                raise self._in_vain(after, timeout_s)
            time.sleep(POLL_S)

    def _happened(
        self, after: Trigger, begun: dict[tuple[str, str], float]
    ) -> Iterator[ContainerInfo]:
        if isinstance(after, str | re.Pattern):
            yield from self._wrote(after)
            return
        for found in self._plane.containers():
            if callable(after):
                if after(found):
                    yield found
                continue
            now = time.monotonic()
            starts = [begun.setdefault((found.id, item), now) for item in found.inputs]
            if any(now - start >= after for start in starts):
                yield found

    def _wrote(self, text: str | re.Pattern[str]) -> Iterator[ContainerInfo]:
        # In this order: who wrote one of the lines is among the live, or has ended.
        lines = self._plane.logs(self._since)
        live = {found.id: found for found in self._plane.containers()}
        for line in lines:
            self._since = line.index + 1
            if line.container in live and _is_in(text, line.text):
                yield live[line.container]

    def _in_vain(self, wanted: Trigger, timeout_s: float) -> LocalPlaneError:
        return LocalPlaneError(
            f"waited {timeout_s:g} s in vain for {wanted!r}\n{describe(self._plane)}"
        )


def describe(plane: RunningPlane) -> str:
    """Say in words which containers there are, and what was written last."""
    found = plane.containers(all=True)
    shown = [_container(container) for container in found[-LINES_SHOWN:]] or ["none"]
    lines = [f"{line.container} {line.stream}: {line.text}" for line in plane.logs()[-LINES_SHOWN:]]
    return "\n".join(
        [f"containers ({len(found)} in all):", *shown, "last lines:", *(lines or ["none"])]
    )


def _container(found: ContainerInfo) -> str:
    end = "" if found.returncode is None else f" with code {found.returncode}"
    running = f", running {', '.join(found.inputs)}" if found.inputs else ""
    return f"{found.id} {found.app}/{found.function} ({found.kind}): {found.state}{end}{running}"


def _is_in(wanted: str | re.Pattern[str], text: str) -> bool:
    return wanted in text if isinstance(wanted, str) else wanted.search(text) is not None
