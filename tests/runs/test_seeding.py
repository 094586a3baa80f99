"""Generators: seeded from few numbers, captured and put back whole, loaded or not."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from modalkit.runs import seeding


@pytest.fixture(autouse=True)
def _put_back():
    before = seeding.capture()
    yield
    seeding.put_back(before)


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss(0, 1)]


def test_equal_seeds_draw_equal_numbers_and_others_do_not():
    drawn = []
    for seed, rank in ((0, 0), (0, 0), (1, 0), (0, 1), (2**63 - 1, 7)):
        seeding.seed_everything(seed, rank)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    numbers = [number for numbers in drawn[1:] for number in numbers]
    assert len(set(numbers)) == len(numbers)


def test_the_numbers_are_the_same_on_every_machine():
    assert seeding.derive(0, "epoch", 1) == 9557879171769391838
    assert seeding.derive(1, 2) != seeding.derive("1", 2)
    assert seeding.derive(1, 23) != seeding.derive(12, 3)


def test_what_was_captured_goes_on():
    seeding.seed_everything(3)
    draw()
    state = seeding.capture()
    expected = draw()
    seeding.seed_everything(4)
    seeding.restore(state, seed=0, rank=0)
    assert draw() == expected


def test_a_second_normal_number_is_not_lost():
    """Python and numpy make two at once and keep one."""
    random.gauss(0, 1)
    np.random.randn()
    state = seeding.capture()
    expected = random.gauss(0, 1), np.random.randn()
    seeding.restore(state, seed=0, rank=0)
    assert (random.gauss(0, 1), np.random.randn()) == expected


def test_a_library_that_was_loaded_since_starts_from_seed_and_rank():
    seeding.seed_everything(5, 1)
    expected = draw()
    seeding.seed_everything(5, 1)
    python_only = {"python": random.getstate()}
    np.random.seed(0)
    torch.manual_seed(0)
    seeding.restore(python_only, seed=5, rank=1)
    assert draw() == expected


def test_data_of_a_step_has_numbers_of_its_own():
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seeding.seed_data(seed, step)
        drawn.append(draw())
    assert drawn[0] == drawn[3]
    assert len({number for numbers in drawn[:3] for number in numbers}) == 12


def test_nothing_is_imported_that_the_program_has_not():
    code = (
        "import sys\n"
        "from modalkit.runs import seeding\n"
        "seeding.seed_everything(0); seeding.seed_data(0, 1)\n"
        "seeding.restore(seeding.capture(), seed=0, rank=0); seeding.put_back(seeding.capture())\n"
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert result.stdout == "set()\n"


class FakeCuda:
    """What torch.cuda gives, for machines without a GPU: two devices with a number as state."""

    def __init__(self, devices: int) -> None:
        self.states = [torch.tensor([0])] * devices
        self.seeds: list[int] = []

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return bool(self.states)

    def device_count(self) -> int:
        return len(self.states)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return list(self.states)

    def set_rng_state(self, state: torch.Tensor, device: int) -> None:
        self.states[device] = state

    def manual_seed_all(self, seed: int) -> None:
        self.seeds.append(seed)


@pytest.mark.parametrize(("devices", "restored"), [(2, [8, 9]), (1, [8]), (3, [8, 9, 0]), (0, [])])
def test_every_gpu_that_is_there_is_restored(monkeypatch, devices, restored):
    saving = FakeCuda(2)
    saving.states = [torch.tensor([8]), torch.tensor([9])]
    monkeypatch.setattr(torch, "cuda", saving)
    state = seeding.capture()
    here = FakeCuda(devices)
    monkeypatch.setattr(torch, "cuda", here)
    seeding.restore(state, seed=0, rank=0)
    assert [int(s) for s in here.states] == restored


def test_a_gpu_that_was_not_used_before_starts_from_the_seed(monkeypatch):
    state = seeding.capture()
    assert "cuda" not in state, "this process has not used one"
    cuda = FakeCuda(1)
    monkeypatch.setattr(torch, "cuda", cuda)
    seeding.seed_everything(5, 1)
    seeding.restore(state, seed=5, rank=1)
    assert len(cuda.seeds) == 2
    assert cuda.seeds[0] == cuda.seeds[1]


@pytest.mark.gpu
def test_a_gpu_goes_on():
    state_before = torch.rand(3, device="cuda")
    state = seeding.capture()
    expected = torch.rand(3, device="cuda")
    seeding.seed_everything(1)
    seeding.restore(state, seed=0, rank=0)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert not torch.equal(expected, state_before)
