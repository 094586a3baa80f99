"""
The main job of modalkit on this machine: a training that is preempted, then killed, then finished.

The app beside this file is deployed, unchanged, on the local plane: the real modal client and the
real container entrypoint.  The run is compared, bit for bit, with one that nobody disturbed.
Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import click
import modal
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.tiny_cats.plot import draw
from examples.tiny_cats.story import Story, differences, read_story
from modalkit.local import LocalPlane, LogLine

APP = Path(__file__).with_name("app.py")
APP_NAME = "tiny-cats"
VOLUME = "tiny-cats-outputs"
STARTS = {"cold": "cold", "snapshotting": "cold, snapshot taken", "restored": "restored"}
console = Console(stderr=True)


@attrs.frozen
class Interruption:
    """What is done to the container that reports so many steps, as a part of all."""

    after: float
    what: str
    strike: Callable[[LocalPlane, str], None]


INTERRUPTIONS = (
    Interruption(1 / 3, "preempted", LocalPlane.preempt),
    Interruption(2 / 3, "killed", LocalPlane.kill),
)


@attrs.define
class Watch:
    """Follows the run that is going on through the lines that its containers print."""

    plane: LocalPlane
    total: int | None = None
    steps: dict[str, int] = attrs.field(factory=dict)
    """The last step that each container reported, in the order of their starts."""
    _read: int = attrs.field(init=False)

    @_read.default
    def _skip_earlier_runs(self) -> int:
        return len(self.plane.logs())

    def update(self) -> None:
        """Read what was printed since the last time."""
        for line in self.plane.logs(since=self._read):
            self._read = line.index + 1
            self._take(line)

    def _take(self, line: LogLine) -> None:
        if found := re.search(r"\bstep (\d+)(?: of (\d+))?", line.text):
            self.steps[line.container] = int(found[1])
            self.total = int(found[2]) if found[2] else self.total

    @property
    def newest(self) -> tuple[str, int]:
        """The container that started last, and its step."""
        return list(self.steps.items())[-1] if self.steps else ("", 0)


def train(
    plane: LocalPlane, run_id: str, epochs: int, interruptions: tuple[Interruption, ...] = ()
) -> Story:
    """Train once through the deployed app, strike as told, and read back what is on the Volume."""
    trainer = modal.Cls.from_name(APP_NAME, "CatTrainer", client=plane.client())()
    watch = Watch(plane)
    call = trainer.train.spawn(run_id, epochs=epochs)
    waiting = list(interruptions)
    struck: set[str] = set()
    with progress_bar(run_id) as show:
        while (result := finished(call)) is None:
            watch.update()
            container, step = watch.newest
            show(step, watch.total)
            due = waiting and watch.total and step >= waiting[0].after * watch.total
            if due and container not in struck:
                interruption = waiting.pop(0)
                interruption.strike(plane, container)
                struck.add(container)
                console.print(f"  {run_id}: {interruption.what} at step {step}", style="yellow")
        show(watch.total or 0, watch.total)
    watch.update()
    directory = plane.volume(VOLUME).committed() / "runs" / run_id
    return read_story(directory, plane.containers(all=True), watch.steps, result["val_acc"])


def finished(call: modal.FunctionCall) -> dict | None:
    """Wait for a moment; return the result if it is there."""
    try:
        return call.get(timeout=0.1)
    except TimeoutError:
        return None


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar that the yielded function moves."""
    columns = [
        TextColumn("{task.description:16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def start_times(plane: LocalPlane, kind: str, count: int) -> list[float]:
    """Start containers one after the other; measure from launch to the first line of a method."""
    trainer = modal.Cls.from_name(APP_NAME, "CatTrainer", client=plane.client())()
    times: list[float] = []
    while len(times) < count:
        first_line = trainer.ready.remote()
        container = max(plane.containers(all=True), key=lambda found: found.launched_at)
        if container.kind != kind:
            raise click.ClickException(f"a {container.kind} start, where a {kind} one was expected")
        times.append(first_line - container.launched_at)
    console.print(f"  {kind} starts: " + ", ".join(f"{seconds:.3f} s" for seconds in times))
    return times


def print_table(story: Story) -> None:
    """Show the attempts."""
    table = Table(title="The interrupted run")
    for heading in ("attempt", "end", "steps", "resumed at", "recomputed", "start"):
        table.add_column(heading, justify="left" if heading in ("end", "start") else "right")
    for row in story.rows:
        table.add_row(
            str(row.number),
            row.cause,
            str(row.last_step - row.resumed_at),
            str(row.resumed_at),
            str(row.recomputed),
            f"{STARTS.get(row.start, row.start)}, {row.start_s:.2f} s",
        )
    console.print(table)


def check(story: Story, control: Story) -> list[str]:
    """Return everything that is not as it should be."""
    wanted = [interruption.what for interruption in INTERRUPTIONS] + ["finished"]
    causes = [row.cause for row in story.rows]
    wrong = [] if causes == wanted else [f"the attempts ended as {causes}, expected {wanted}"]
    if len(control.rows) != 1:
        wrong.append(f"the control run took {len(control.rows)} attempts")
    return wrong + differences(story, control)


@click.command()
@click.option("--epochs", default=10, show_default=True, help="Epochs of 120 steps.")
@click.option("--starts", default=3, show_default=True, help="Starts of each kind to measure.")
@click.option(
    "--output-dir",
    default="demo-output",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the plot goes.",
)
@click.option("--keep", is_flag=True, help="Keep the Volumes too, in OUTPUT_DIR/volumes.")
def main(epochs: int, starts: int, output_dir: Path, *, keep: bool) -> None:
    """Train tiny_cats on the local plane through a preemption and a kill, and compare."""
    output_dir.mkdir(parents=True, exist_ok=True)
    state = output_dir / "volumes" if keep else None
    with LocalPlane(state, engine="fork", strict_image=True) as plane:
        console.print("deploy and train; then once more, undisturbed", style="bold")
        plane.deploy(str(APP))
        suffix = uuid.uuid4().hex[:4]  # a kept Volume knows the runs of the last time
        story = train(plane, f"interrupted-{suffix}", epochs, INTERRUPTIONS)
        control = train(plane, f"control-{suffix}", epochs)
        console.print("measure starts", style="bold")
        restored = start_times(plane, "restored", starts)
    with LocalPlane(snapshots=False, strict_image=True) as plane:
        plane.deploy(str(APP))
        cold = start_times(plane, "cold", starts)
    plot = output_dir / "loss.png"
    draw(story, control, plot)
    print_table(story)
    wrong = check(story, control)
    causes = [row.cause for row in story.rows]
    report = {
        "app": APP_NAME,
        "steps": len(story.loss),
        "attempts": len(story.rows),
        "preempted": causes.count("preempted"),
        "killed": causes.count("killed"),
        "steps_recomputed": sum(row.recomputed for row in story.rows),
        "val_accuracy": round(story.val_accuracy, 4),
        "bit_exact": not differences(story, control),
        "cold_start_s": round(statistics.median(cold), 3),
        "restored_start_s": round(statistics.median(restored), 4),
        "plot": str(plot),
    }
    print(json.dumps(report))
    if wrong:
        console.print(*wrong[:20], sep="\n", style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
