"""
Events of a run: JSON lines on the Volume, and readable lines on stderr.

Each attempt has a file of its own, `events/<n>-<container>.jsonl`. It is opened, appended to and
closed at each flush, since a file that stays open keeps the Volume from reloading; the next commit
makes it durable. Metrics are kept as the tensors they are until then: converting one waits for
the GPU, and would do so at every step.
structlog is used here only, through a logger of our own: a program's configuration of it is
neither read nor changed.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from modalkit.errors import RunError

EVENTS: Final = "events"
"""The folder of the events in a run's directory."""

FLUSH_EVERY_S: Final = 2.0
"""Short enough to watch a training, long enough that no step notices."""

_FILE_NAME: Final = re.compile(r"(\d+)-([A-Za-z0-9_-]+)\.jsonl")

Scalar = float | int | bool
"""A metric after its conversion."""


@attrs.frozen
class Event:
    """One line of a file of events."""

    attempt: int
    container: str
    time: float
    """Unix seconds by the container's clock."""
    kind: str
    fields: Mapping[str, Any]


class Events:
    """
    The events of one attempt.

    Args:
        path: The file, `events/<n>-<container>.jsonl`; its folder is made at the first flush.
        run_id: Named in each readable line.
        clock: Monotonic seconds.
    """

    def __init__(
        self, path: Path, *, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._run_id = run_id
        self._clock = clock
        self._lines: list[str] = []
        self._metrics: dict[int, dict[str, Any]] = {}
        self._flushed_at = clock()
        self._shown_at = self._flushed_at
        self._shown_step: int | None = None
        self._noted_step: int | None = None
        self._said: set[str] = set()
        self._log = _line_logger()
        self.latest: dict[str, Scalar] = {}
        """The last value of each metric, as of the last flush."""

    def emit(self, kind: str, /, **fields: Any) -> None:
        """Note an event; it is written at the next flush."""
        self._lines.append(_dumps({"time": time.time(), "kind": kind, **fields}))

    def say(
        self, kind: str, message: str, /, *, shown: Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        """
        Note an event and show it as a readable line now.

        Args:
            kind: What happened, in one word.
            message: The same as a phrase.
            shown: Values for the line.
            **fields: Values for the event.
        """
        self.emit(kind, message=message, **fields)
        self._show(message, *(_words(name, value) for name, value in (shown or {}).items()))

    def say_once(self, kind: str, message: str, /) -> None:
        """Like `say`, but the second event of this kind is dropped."""
        if kind not in self._said:
            self._said.add(kind)
            self.say(kind, message)

    def log_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """
        Keep the metrics of *step* without waiting for a device.

        Raises:
            RunError: A value is not a single number.
        """
        kept = self._metrics.setdefault(step, {})
        for name, value in values.items():
            kept[name] = _kept(name, value)

    def flush_if_due(self, step: int) -> None:
        """Flush if the last flush is some seconds ago; cheap enough for every step."""
        if self._clock() - self._flushed_at >= FLUSH_EVERY_S:
            self.flush(step)

    def flush(self, step: int | None = None) -> None:
        """
        Write what was kept, and close the file again.

        Args:
            step: Steps done, to note and show how fast it goes; None does neither.
        """
        for metrics_step, values in self._metrics.items():
            numbers = {name: _number(value) for name, value in values.items()}
            self.latest.update(numbers)
            self.emit("metrics", step=metrics_step, values=numbers)
        if step is not None and step != self._noted_step:
            self._noted_step = step
            self.emit("progress", step=step)
            self._show_progress(step)
        self._metrics.clear()
        self._flushed_at = self._clock()
        if self._lines:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in self._lines))
            self._lines.clear()

    def _show_progress(self, step: int) -> None:
        """Show a line, unless there was one a moment ago: saves flush too, and may be frequent."""
        elapsed = self._clock() - self._shown_at
        if elapsed < FLUSH_EVERY_S:
            return
        words = [_words(name, value) for name, value in self.latest.items()]
        if self._shown_step is not None:
            words.append(f"{(step - self._shown_step) / elapsed:.1f} steps/s")
        self._shown_at, self._shown_step = self._clock(), step
        self._show(f"step {step}", *words)

    def _show(self, *words: str) -> None:
        self._log("  ".join([*words, f"run {self._run_id}"]))


def read_events(run_directory: Path | str) -> Iterator[Event]:
    """
    Yield the events of all attempts of a run, attempt by attempt.

    A line that is torn, because its container was killed while it was written, is left out.

    Args:
        run_directory: `<mount>/runs/<run_id>`.
    """
    found = (Path(run_directory) / EVENTS).glob("*.jsonl")
    for path in sorted((p for p in found if _FILE_NAME.fullmatch(p.name)), key=_place):
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Event]:
    """Yield the events of one attempt; none if it has written no file yet."""
    attempt, container = _place(path)
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if (event := _parse(line, attempt, container)) is not None:
                yield event


def read_metrics(run_directory: Path | str) -> dict[int, dict[str, Scalar]]:
    """
    Return the metrics of a run by step.

    A step that was computed more than once has the values of the last attempt that computed it.

    Args:
        run_directory: `<mount>/runs/<run_id>`.
    """
    metrics: dict[int, dict[str, Scalar]] = {}
    owners: dict[int, tuple[int, str]] = {}
    for event in read_events(run_directory):
        if event.kind != "metrics":
            continue
        step, owner = event.fields["step"], (event.attempt, event.container)
        if owners.setdefault(step, owner) != owner:
            owners[step] = owner
            metrics[step] = {}
        values = {name: from_json(value) for name, value in event.fields["values"].items()}
        metrics.setdefault(step, {}).update(values)
    return dict(sorted(metrics.items()))


def to_json(value: Scalar) -> Scalar | str:
    """Return a number as JSON can hold it: those that are not finite go as text."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(value: Scalar | str) -> Scalar:
    """Return the number that `to_json` wrote."""
    return float(value) if isinstance(value, str) else value


def _place(path: Path) -> tuple[int, str]:
    """Return number and container of the attempt that wrote *path*."""
    number, _, container = path.stem.partition("-")
    return int(number), container


def _parse(line: bytes, attempt: int, container: str) -> Event | None:
    try:
        fields = json.loads(line)
        return Event(attempt, container, fields.pop("time"), fields.pop("kind"), fields)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _dumps(fields: Mapping[str, Any]) -> str:
    return json.dumps(_finite(fields), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return to_json(value)


def _kept(name: str, value: Any) -> Any:
    """Return *value* such that later changes of it do not matter, and no device is waited for."""
    if isinstance(value, (bool, int, float)):
        return value
    size = getattr(value, "numel", None)
    count = size() if callable(size) else getattr(value, "size", None)
    if count != 1:
        raise RunError(
            f"log({name}=...): {type(value).__qualname__} is not a single number. "
            f"Pass a number or a tensor with one element, such as loss.mean()."
        )
    # Running sums are changed in place: what is logged must be a copy.
    return value.detach().clone() if hasattr(value, "detach") else value.copy()


def _number(value: Any) -> Scalar:
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, (bool, int)) else float(number)


def _line_logger() -> Callable[[str], None]:
    import structlog

    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[lambda _logger, _method, fields: fields["event"]],
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )

    def log(line: str) -> None:
        # A terminal that is gone is no reason to end a training.
        with contextlib.suppress(OSError, ValueError):
            logger.info(line)

    return log


def _words(name: str, value: object) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
