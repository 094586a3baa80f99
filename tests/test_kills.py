"""The kill campaign in small, and its mutants: planted defects that it must report."""

import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .campaigns.kills import Campaign, campaign, plans, run_plans
from .campaigns.mutants import MUTANTS, UNCHANGED, Mutant


@pytest.fixture(scope="module")
def running() -> Iterator[Campaign]:
    with campaign() as prepared:
        yield prepared


def test_two_kills_change_nothing() -> None:
    todo = [plan for plan in plans(4, 0, random.Random()) if plan.is_restored]
    assert [plan.num_workers for plan in todo] == [0, 2]
    with campaign(cold=False) as running:
        assert run_plans(running, todo) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_six_kills_and_a_preemption_change_nothing(running: Campaign) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    todo = plans(6, 1, random.Random(seed))
    assert sum(plan.at_step < 9 for plan in todo) >= 2
    assert {(plan.is_restored, plan.num_workers) for plan in todo} == {
        (restored, workers) for restored in (False, True) for workers in (0, 2)
    }
    assert run_plans(running, todo) == [], f"seed {seed}"


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_defect_is_reported(mutant: Mutant, running: Campaign) -> None:
    assert len(mutant.plans) <= 3
    with tempfile.TemporaryDirectory() as directory:
        package = mutant.plant(Path(directory))
        with running.with_package(package) as defective:
            wrong = run_plans(defective, list(mutant.plans))
    assert len(wrong) == len(mutant.plans)
    for report in wrong:
        assert re.search(mutant.expected, report), report


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_an_unchanged_copy_passes(running: Campaign) -> None:
    with tempfile.TemporaryDirectory() as directory:
        package = UNCHANGED.plant(Path(directory))
        with running.with_package(package) as same:
            assert run_plans(same, list(UNCHANGED.plans)) == []


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_interruptions_on_a_gpu_change_nothing() -> None:
    with campaign(gpu=0) as running:
        assert run_plans(running, plans(8, 2, random.Random(0))) == []
        assert running.devices() == {"cuda"}
