"""The soak campaign in small, and its mutants: planted defects that it must report."""

import random
from pathlib import Path

import pytest

from .campaigns.soak import soak
from .campaigns.soak_mutants import MUTANTS, UNCHANGED, Mutant


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_kills_lose_nothing_and_leave_nothing() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    assert soak(8, random.Random(seed), 90.0, "lenient") == [], f"seed {seed}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defect_can_be_planted_where_the_code_is_now(mutant: Mutant, tmp_path: Path) -> None:
    mutant.plant(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_defect_is_reported(mutant: Mutant) -> None:
    done = mutant.soak(patience_s=20.0)
    assert mutant.is_reported(done), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_unchanged_copy_passes() -> None:
    done = UNCHANGED.soak(patience_s=90.0)
    assert done.returncode == 0, done.stderr
