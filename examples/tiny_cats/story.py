"""What happened to a run: attempts with their starts and ends, and its comparison with another."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from modalkit.checkpoint import store
from modalkit.local import ContainerInfo
from modalkit.runs.attempts import Attempt, read_attempts
from modalkit.telemetry.events import read_metrics


@attrs.frozen
class Row:
    """One attempt, as the table shows it; `last_step` is the last one known to be done."""

    number: int
    cause: str
    resumed_at: int
    last_step: int
    recomputed: int
    start: str
    start_s: float


@attrs.frozen
class Story:
    """One run from its first attempt to its end."""

    rows: list[Row]
    loss: dict[int, float]
    tensors: dict[str, torch.Tensor]
    val_accuracy: float


def read_story(
    directory: Path, containers: list[ContainerInfo], seen: dict[str, int], val_accuracy: float
) -> Story:
    """
    Read a finished run back from its directory on the Volume.

    Args:
        directory: The run's directory.
        containers: All containers that there were.
        seen: The last step that each container reported; a killed one leaves no other trace of it.
        val_accuracy: As the run returned it.
    """
    by_id = {container.id: container for container in containers}
    attempts = read_attempts(directory)
    rows = [
        _row(attempt, following, by_id[attempt.container], seen.get(attempt.container, 0))
        for attempt, following in zip(attempts, [*attempts[1:], None], strict=True)
    ]
    loss = {step: metrics["loss"] for step, metrics in read_metrics(directory).items()}
    return Story(rows, loss, store.read(directory).tensors, val_accuracy)


def _row(attempt: Attempt, following: Attempt | None, container: ContainerInfo, seen: int) -> Row:
    last_step = max(attempt.step, seen)
    return Row(
        number=attempt.number,
        cause="killed" if attempt.cause == "lost" else attempt.cause,
        resumed_at=attempt.resumed_at or 0,
        last_step=last_step,
        recomputed=max(0, last_step - (following.resumed_at or 0)) if following else 0,
        start=container.kind,
        start_s=(container.first_input_at or 0.0) - container.launched_at,
    )


def differences(story: Story, control: Story) -> list[str]:
    """Name every tensor of the last checkpoint, and every step's loss, that is not the same."""
    ours, theirs = story.tensors, control.tensors
    found = [f"only one run has {name}" for name in sorted(ours.keys() ^ theirs.keys())]
    found += [
        f"{name} differs"
        for name in sorted(ours.keys() & theirs.keys())
        if not _same_bits(ours[name], theirs[name])
    ]
    found += [
        f"the loss of step {step} is {story.loss.get(step)}, in the control run "
        f"{control.loss.get(step)}"
        for step in sorted(story.loss.keys() | control.loss.keys())
        if story.loss.get(step) != control.loss.get(step)
    ]
    return found


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether two tensors hold the same bytes, so that NaN equals NaN and 0.0 is not -0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = (t.detach().cpu().contiguous().reshape(-1) for t in (a, b))
    return torch.equal(flat_a.view(torch.uint8), flat_b.view(torch.uint8))
