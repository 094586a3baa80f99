"""The loss curve of an interrupted run, on top of the control run's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from examples.tiny_cats.story import Story

COLOURS = {"preempted": "tab:orange", "killed": "tab:red"}
SMOOTHING = 0.95  # part of the running mean that one step keeps


def draw(story: Story, control: Story, file: Path) -> None:
    """Write a PNG with both curves, every interruption and the steps that were computed twice."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_points(story.loss), color="tab:blue", alpha=0.2, linewidth=0.6)
    axes.plot(*_smooth(story.loss), color="tab:blue", linewidth=3, label="interrupted run")
    axes.plot(*_smooth(control.loss), color="black", linewidth=0.8, label="control run")
    for row, following in pairwise(story.rows):
        colour = COLOURS.get(row.cause, "tab:grey")
        label = f"attempt {row.number} {row.cause}"
        axes.axvline(row.last_step, color=colour, linestyle="--", label=label)
        axes.axvspan(following.resumed_at, row.last_step, color=colour, alpha=0.15)
    axes.set(xlabel="step", ylabel="training loss", title="tiny_cats: interrupted and control run")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, dpi=120)


def _points(loss: dict[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(loss)
    return steps, [loss[step] for step in steps]


def _smooth(loss: dict[int, float]) -> tuple[list[int], list[float]]:
    steps, values = _points(loss)
    smooth: list[float] = []
    for value in values:
        mean = smooth[-1] if smooth else value
        smooth.append(SMOOTHING * mean + (1 - SMOOTHING) * value)
    return steps, smooth
