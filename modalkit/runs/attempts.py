"""
The ledger of a run: one file per attempt, written before user code runs and again at its end.

    attempts/<n>-<container>.json

Each attempt writes its own file only. A container that is killed writes no end: that a later
attempt exists says that it was lost. Two attempts that start at once may get the same number; the
container in the name keeps them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from attrs.validators import instance_of as is_a
from attrs.validators import optional

from modalkit.runs import files
from modalkit.telemetry import events

ATTEMPTS: Final = "attempts"
"""The folder of the ledger in a run's directory."""

Cause = Literal["running", "finished", "stopped", "preempted", "cancelled", "error", "lost"]
"""
Why an attempt ended.

`finished`: all steps are done. `stopped`: the loop was left before that. `preempted`: a signal or
a `KeyboardInterrupt`. `cancelled`: the call was cancelled. `error`: an exception. `lost`: killed,
and a later attempt exists. `running`: none of these yet.
"""

_FILE_NAME: Final = re.compile(r"(\d+)-([A-Za-z0-9_-]+)\.json")


@attrs.frozen(kw_only=True)
class Attempt:
    """One container's try at a run."""

    number: int = attrs.field(validator=is_a(int))
    """1 for the first. Also the epoch of its checkpoints."""
    container: str = attrs.field(validator=is_a(str))
    started_at: float = attrs.field(validator=is_a((int, float)))
    """Unix seconds at the call of `run()`."""
    resumed_at: int | None = attrs.field(validator=optional(is_a(int)))
    """Steps that were done when it began; None for the beginning of a run."""
    step: int = attrs.field(validator=is_a(int))
    """Steps done at its end. For a lost one, as far as what it committed shows."""
    cause: Cause = "running"
    ended_at: float | None = None
    error: str | None = None
    """Type and message of the exception that ended it."""
    seed: int = attrs.field(default=0, validator=is_a(int))
    config: Mapping[str, Any] = attrs.field(factory=dict, validator=is_a(dict))
    versions: Mapping[str, str] = attrs.field(factory=dict, validator=is_a(dict))
    summary: Mapping[str, Any] | None = attrs.field(default=None, validator=optional(is_a(dict)))
    """What `run.summary()` returned at its end, if it finished or stopped."""

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return f"{self.number}-{self.container}.json"


def cause_of(error: BaseException | None, *, is_signalled: bool, is_done: bool) -> Cause:
    """Return why an attempt ends that *error* ends, or nothing did."""
    if is_signalled or isinstance(error, KeyboardInterrupt):
        return "preempted"
    if error is not None:
        # Modal's InputCancellation and asyncio's CancelledError, without importing either.
        is_cancelled = type(error).__name__ in ("InputCancellation", "CancelledError")
        return "cancelled" if is_cancelled else "error"
    return "finished" if is_done else "stopped"


def write(run_directory: Path, attempt: Attempt) -> None:
    """Write or replace the file of *attempt*."""
    path = run_directory / ATTEMPTS / attempt.file_name
    files.write_json(path, attrs.asdict(attempt), temporary=_temporary(run_directory, attempt))


def read_attempts(run_directory: Path | str) -> list[Attempt]:
    """
    Return all attempts at a run, in the order in which they began.

    Args:
        run_directory: `<mount>/runs/<run_id>`.
    """
    directory = Path(run_directory)
    found = []
    for path in sorted((directory / ATTEMPTS).glob("*.json")):
        content = files.read_json(path)
        attempt = None if content is None else _parse(content)
        if _FILE_NAME.fullmatch(path.name) and attempt is not None:
            found.append(attempt)
    found.sort(key=lambda attempt: (attempt.number, attempt.started_at))
    return [
        attempt
        if attempt.cause != "running"
        else attrs.evolve(
            attempt,
            cause="running" if attempt is found[-1] else "lost",
            step=_furthest_step(directory, attempt),
        )
        for attempt in found
    ]


def next_number(run_directory: Path) -> int:
    """Return the number of a new attempt; a torn file has used up its number too."""
    found = (run_directory / ATTEMPTS).glob("*.json")
    matches = [_FILE_NAME.fullmatch(path.name) for path in found]
    return 1 + max((int(match[1]) for match in matches if match), default=0)


def remove_leftovers(run_directory: Path, earlier: Sequence[Attempt]) -> None:
    """Remove what earlier attempts were writing to the ledger when they were killed."""
    for attempt in earlier:
        _temporary(run_directory, attempt).unlink(missing_ok=True)


def recomputed_steps(attempts: Sequence[Attempt]) -> int:
    """
    Return how many steps were computed more than once over *attempts*.

    Steps that a killed container did after its last commit left no trace and are not counted.
    """
    computed = sum(attempt.step - (attempt.resumed_at or 0) for attempt in attempts)
    return computed - max((attempt.step for attempt in attempts), default=0)


def finished_summary(attempts: Sequence[Attempt], step: int) -> Mapping[str, Any] | None:
    """Return the summary of the latest attempt that finished the run at *step*."""
    for attempt in reversed(attempts):
        if attempt.cause == "finished" and attempt.step == step and attempt.summary:
            return attempt.summary
    return None


def _parse(content: Mapping[str, Any]) -> Attempt | None:
    """Return the attempt, or None if *content* is none: a bad file must not end the run."""
    known = attrs.fields_dict(Attempt)
    try:
        return Attempt(**{key: value for key, value in content.items() if key in known})
    except (TypeError, ValueError):
        return None


def _temporary(run_directory: Path, attempt: Attempt) -> Path:
    """Not in the ledger's folder, which holds attempts and nothing else."""
    return run_directory / f".tmp-{attempt.file_name}"


def _furthest_step(run_directory: Path, attempt: Attempt) -> int:
    """Return how far an attempt came that wrote no end, by the events that it committed."""
    path = run_directory / events.EVENTS / f"{attempt.number}-{attempt.container}.jsonl"
    steps = (
        event.fields["step"]
        for event in events.read_file(path)
        if event.kind in ("checkpoint", "progress")
    )
    return max(steps, default=attempt.step)
