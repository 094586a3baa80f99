"""
Kill a training at random moments and compare what becomes of it with an uninterrupted run.

    python -m tests.campaigns.kills [--kills 30] [--preemptions 4] [--seed N]

Every interrupted run must end as the control run did, to the bit: parameters, optimizer, scheduler,
generators and the loss of every step; and it must resume at the last step whose checkpoint the
policy had made durable, or later. The talk is on stderr; the last line of stdout is JSON.
The planes commit nothing in the background: what a run calls durable must be so by its own commit.
A campaign proves what its mutants prove: see `tests/campaigns/mutants.py`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import click
import modal

from modalkit import UnknownContainerError
from modalkit.checkpoint import store
from modalkit.local import LocalPlane
from modalkit.telemetry import events

APP = Path(__file__).with_name("kills_app.py")
EVERY_STEPS = 10
"""As in `kills_app`."""
STEPS = 45
PATIENCE_S = 120.0
TRIES = 5
"""How often a plan is begun anew whose run was over before it was interrupted."""


class MismatchError(Exception):
    """An interrupted run did not end as the control run did."""


class TooLateError(Exception):
    """A run was over before it could be interrupted."""


@attrs.frozen
class Plan:
    """One interruption."""

    number: int
    is_kill: bool
    is_restored: bool
    num_workers: int
    at_step: int
    delay_s: float
    """After the first sign of that step: anywhere in a step, or in a save."""


def plans(kills: int, preemptions: int, rng: random.Random) -> list[Plan]:
    """
    Return the interruptions: cold and restored starts and both numbers of workers, in turn.

    Every third falls before the first periodic checkpoint, at least five of thirty.
    """
    made = []
    for number in range(kills + preemptions):
        early = number % 3 == 0
        at_step = rng.randrange(0, EVERY_STEPS - 1) if early else rng.randrange(STEPS)
        made.append(
            Plan(
                number=number,
                is_kill=number < kills,
                is_restored=number % 2 == 1,
                num_workers=2 * (number // 2 % 2),
                at_step=at_step,
                delay_s=rng.uniform(0.0, 0.03),
            )
        )
    return made


def fingerprint(run_directory: Path) -> dict[str, Any]:
    """Return all of a run's newest checkpoint that must not depend on who wrote it."""
    loaded = store.read(run_directory)
    manifest = run_directory / store.CHECKPOINTS / loaded.file
    body = json.loads(manifest.read_text().splitlines()[0])
    tree = json.loads(json.dumps(body["tree"]))
    del tree["values"]["measured_s"]  # how long saving took
    return {
        "step": body["step"],
        "tensors": {row["name"]: (row["dtype"], row["digest"]) for row in body["tensors"]},
        "alias": body["alias"],
        "tree": tree,
        "losses": events.read_metrics(run_directory),
    }


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return the first difference in words, or None."""
    for part, right in expected.items():
        left = found[part]
        if left == right:
            continue
        if not isinstance(right, dict):
            return f"{part}: {left} instead of {right}"
        keys = [key for key in {**right, **left} if left.get(key) != right.get(key)]
        return f"{part}: {len(keys)} differ, the first is {keys[0]!r}"
    return None


class Campaign:
    """Runs trainings on two planes, one whose starts are cold and one that restores them."""

    def __init__(
        self, planes: Mapping[bool, LocalPlane], expected: Mapping[str, Any] | None = None
    ) -> None:
        self._planes = planes
        self._clients = {restored: plane.client() for restored, plane in planes.items()}
        self._expected = dict(expected or {})

    @contextmanager
    def with_package(self, package: Path) -> Iterator[Campaign]:
        """Run another modalkit against this campaign's control run, restored starts only."""
        with LocalPlane(engine="fork", strict_image=True, background_commit_s=0) as plane:
            plane.deploy(str(APP), cwd=package)  # modal looks for modules there first
            yield Campaign({True: plane}, self._expected)

    def control(self) -> None:
        """Train once without an interruption."""
        self._start("control", restored=True, num_workers=0).get(PATIENCE_S)
        self._expected = fingerprint(self._directory("control", restored=True))

    def devices(self) -> set[str]:
        """Return what the containers trained on."""
        lines = [line.text.split() for plane in self._planes.values() for line in plane.logs()]
        return {words[1] for words in lines if words[:1] == ["DEVICE"]}

    def interrupt(self, plan: Plan) -> str:
        """
        Carry out one plan and return a line about it.

        Raises:
            MismatchError: The run did not survive it unchanged.
        """
        for attempt in range(TRIES):
            with suppress(TooLateError):
                return self._interrupt(plan, f"victim-{plan.number}-{attempt}")
        raise MismatchError(f"{TRIES} runs were over before they could be interrupted")

    def _interrupt(self, plan: Plan, run_id: str) -> str:
        call = self._start(run_id, restored=plan.is_restored, num_workers=plan.num_workers)
        container = self._await_step(plan, run_id)
        time.sleep(plan.delay_s)
        seen = self._steps_begun(plan, run_id)[-1]
        plane = self._planes[plan.is_restored]
        try:
            plane.kill(container) if plan.is_kill else plane.preempt(container)
        except UnknownContainerError as error:
            raise TooLateError from error
        summary = call.get(PATIENCE_S)
        finished = summary["status"] == "finished"
        if finished and not summary["resumed_at"] and len(self._containers(plan, run_id)) == 1:
            raise TooLateError
        self._check(plan, run_id, summary, seen)
        start = "restored" if plan.is_restored else "cold"
        how = "killed" if plan.is_kill else "preempted"
        return (
            f"{how} at step {seen}, {start}, {plan.num_workers} workers: resumed at "
            f"{summary['resumed_at']}, bit-identical"
        )

    def _check(self, plan: Plan, run_id: str, summary: Mapping[str, Any], seen: int) -> None:
        if summary["status"] != "finished":
            raise MismatchError(f"it ended as {summary}")
        durable = seen // EVERY_STEPS * EVERY_STEPS if plan.is_kill else seen
        if (summary["resumed_at"] or 0) < durable:
            raise MismatchError(f"it resumed at {summary['resumed_at']}, {durable} was durable")
        directory = self._directory(run_id, restored=plan.is_restored)
        if (text := difference(fingerprint(directory), self._expected)) is not None:
            raise MismatchError(text)

    def _start(self, run_id: str, *, restored: bool, num_workers: int) -> modal.FunctionCall[Any]:
        victim = modal.Cls.from_name("kills", "Victim", client=self._clients[restored])
        return victim().train.spawn(run_id, STEPS, num_workers)

    def _directory(self, run_id: str, *, restored: bool) -> Path:
        return self._planes[restored].volume("kills-outputs").committed() / "runs" / run_id

    def _steps_begun(self, plan: Plan, run_id: str) -> list[int]:
        return [step for _, step in self._said(plan, run_id)]

    def _containers(self, plan: Plan, run_id: str) -> set[str]:
        return {container for container, _ in self._said(plan, run_id)}

    def _said(self, plan: Plan, run_id: str) -> list[tuple[str, int]]:
        logs = self._planes[plan.is_restored].logs()
        lines = [(line.container, line.text.split()) for line in logs]
        return [(c, int(w[3])) for c, w in lines if w[:2] == ["RUN", run_id] and w[2] == "STEP"]

    def _await_step(self, plan: Plan, run_id: str) -> str:
        plane = self._planes[plan.is_restored]
        deadline = time.monotonic() + PATIENCE_S
        while not any(step >= plan.at_step for step in self._steps_begun(plan, run_id)):
            if time.monotonic() > deadline:
                raise MismatchError(
                    f"it never reached step {plan.at_step}: {plane.containers(all=True)}"
                )
            time.sleep(0.003)
        working = [c.id for c in plane.containers() if c.inputs]
        if not working:
            raise TooLateError
        return working[0]


@contextmanager
def campaign(gpu: int | None = None, *, cold: bool = True) -> Iterator[Campaign]:
    """
    Deploy the app and train the control run.

    Args:
        gpu: The index of one to train on.
        cold: Have a plane whose starts are cold as well.
    """
    gpus, env = ([], {}) if gpu is None else ([gpu], {"KILLS_GPU": "any"})
    with ExitStack() as stack:
        planes = {}
        for is_restored in (True, False)[: 1 + cold]:
            plane = LocalPlane(
                engine="fork",
                snapshots=None if is_restored else False,
                strict_image=True,
                background_commit_s=0,
                gpus=gpus,
                env=env,
            )
            planes[is_restored] = stack.enter_context(plane)
            planes[is_restored].deploy(str(APP))
        running = Campaign(planes)
        running.control()
        yield running


def run_plans(running: Campaign, todo: list[Plan], say: Any = lambda text: None) -> list[str]:
    """Carry out *todo* and return what went wrong."""
    wrong = []
    for plan in todo:
        try:
            say(f"{plan.number + 1}/{len(todo)} {running.interrupt(plan)}")
        except (MismatchError, modal.exception.Error, TimeoutError) as error:
            wrong.append(f"{plan}: {type(error).__name__}: {error}")
            say(f"{plan.number + 1}/{len(todo)} WRONG {wrong[-1]}")
    return wrong


@click.command()
@click.option("--kills", default=30, show_default=True, help="SIGKILLs, each in a run of its own.")
@click.option("--preemptions", default=4, show_default=True, help="SIGINTs with 30 s of grace.")
@click.option("--seed", type=int, help="Of the moments; a new one by default, and printed.")
def main(kills: int, preemptions: int, seed: int | None) -> None:
    """Kill a training at random moments; every run must end as an uninterrupted one, to the bit."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    started = time.monotonic()
    with campaign() as running:
        todo = plans(kills, preemptions, random.Random(seed))
        wrong = run_plans(running, todo, lambda text: click.echo(text, err=True))
    click.echo(f"{time.monotonic() - started:.0f} s", err=True)
    print(json.dumps({"kills": kills, "bit_exact": not wrong}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
