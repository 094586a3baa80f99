"""Batches: a pure function of (seed, epoch, step), and so is what augmentation draws for them."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, Subset

import modalkit
from modalkit.errors import RunError
from modalkit.runs import seeding
from modalkit.runs.batches import Batch, Batches


def make(n_items=23, batch_size=4, *, seed=0, start=0, **options) -> Batches:
    return Batches(n_items, batch_size, seed=seed, next_step=lambda: start, **options)


def take(batches: Batches, count: int) -> list[list[int]]:
    return [list(batch) for batch in itertools.islice(batches, count)]


sizes = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(sizes, st.integers(0, 2**63), st.integers(0, 200), st.booleans(), st.booleans())
def test_batches_from_any_step_on_are_those_of_a_run_from_the_beginning(
    size, seed, start, shuffle, drop_last
):
    options = {"seed": seed, "shuffle": shuffle, "drop_last": drop_last}
    whole = take(make(*size, **options), start + 5)
    assert take(make(*size, start=start, **options), 5) == whole[start:]
    assert make(*size, **options).batch(start) == whole[start]


@given(sizes, st.integers(0, 2**32), st.integers(0, 5), st.booleans())
def test_an_epoch_has_every_item_once(size, seed, epoch, shuffle):
    n_items, batch_size = size
    batches = make(n_items, batch_size, seed=seed, shuffle=shuffle, drop_last=False)
    per_epoch = batches.steps_per_epoch
    items = [i for step in range(per_epoch) for i in batches.batch(epoch * per_epoch + step)]
    assert sorted(items) == list(range(n_items))
    assert shuffle or items == list(range(n_items))


@given(sizes, st.integers(0, 20))
def test_without_the_last_batch_all_are_full(size, step):
    batches = make(*size)
    assert len(batches.batch(step)) == size[1]
    assert batches.steps_per_epoch == size[0] // size[1]


def test_epochs_and_seeds_have_orders_of_their_own():
    per_epoch = make().steps_per_epoch
    orders = [
        [i for s in range(per_epoch) for i in make(seed=seed).batch(epoch * per_epoch + s)]
        for seed, epoch in itertools.product(range(3), range(3))
    ]
    assert len({tuple(order) for order in orders}) == 9


def test_the_order_is_the_same_in_every_version():
    """A run that is resumed after an upgrade must not see another order."""
    order = [[6, 5, 3, 9, 2], [1, 7, 0, 8, 4], [9, 3, 8, 1, 6]]
    assert [make(10, 5, seed=3).batch(step) for step in range(3)] == order


@pytest.mark.parametrize(
    ("n_items", "batch_size", "drop_last"),
    [(0, 1, False), (3, 4, True), (3, 0, True), (-1, 1, False)],
)
def test_an_epoch_without_a_batch_is_refused(n_items, batch_size, drop_last):
    with pytest.raises(RunError, match=f"n_items={n_items}, batch_size={batch_size}"):
        make(n_items, batch_size, drop_last=drop_last)


def test_an_iteration_starts_at_the_step_of_its_beginning():
    step = 3
    batches = Batches(23, 4, seed=0, next_step=lambda: step)
    early = iter(batches)
    step = 7
    assert next(early) == batches.batch(3)
    assert next(iter(batches)) == batches.batch(7)


# ---- what items draw ----------------------------------------------------------------------------


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Noise(Dataset):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, *draw()], dtype=torch.float64)


class InitialSeed(Noise):
    """Makes a generator of its own from torch's seed, as libraries do in workers."""

    def __getitem__(self, index: int) -> int:
        return torch.initial_seed()


def fetch(start: int, count: int, dataset: Dataset | None = None, **options) -> list[torch.Tensor]:
    loader = DataLoader(dataset or Noise(), batch_sampler=make(start=start), **options)
    return list(itertools.islice(loader, count))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_augmentation_depends_on_the_step_alone():
    whole = fetch(0, 9)
    assert same(fetch(0, 9, num_workers=2), whole)
    assert same(fetch(4, 5), whole[4:])
    assert same(fetch(5, 4, num_workers=2), whole[5:])
    assert same(fetch(3, 6, num_workers=2, prefetch_factor=4), whole[3:])


@pytest.mark.slow
def test_workers_that_are_spawned_and_kept_draw_the_same():
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    loader = DataLoader(Noise(), batch_sampler=make(), **options)
    for _ in range(2):
        assert same(list(itertools.islice(loader, 3)), fetch(0, 3))


def test_steps_and_seeds_draw_different_numbers():
    batches = [batch[:, 1:] for batch in fetch(0, 10)]
    numbers = {float(x) for batch in batches for x in batch.flatten()}
    assert len(numbers) == 10 * 4 * 3
    loader = DataLoader(Noise(), batch_sampler=make(seed=1))
    assert not {float(x) for x in next(iter(loader))[:, 1:].flatten()} & numbers


def test_torchs_initial_seed_is_the_steps_own():
    seeds = [int(batch[0]) for batch in fetch(0, 4, InitialSeed())]
    assert len(set(seeds)) == 4
    assert [int(b[0]) for b in fetch(2, 2, InitialSeed(), num_workers=2)] == seeds[2:]


def test_a_subset_draws_the_same():
    subset = Subset(Noise(), list(range(23)))
    assert same(fetch(0, 3, subset), fetch(0, 3))


def generators() -> dict:
    return {**seeding.capture(), "torch": torch.get_rng_state().tolist()}


def test_fetching_in_the_main_process_does_not_disturb_the_training_stream():
    loader = iter(DataLoader(Noise(), batch_sampler=make()))
    before = generators()
    next(loader)
    np.testing.assert_equal(generators(), before)


def test_an_item_that_fails_leaves_the_training_stream_as_it_was():
    class Broken(Noise):
        def __getitem__(self, index: int):
            draw()
            raise OSError("no such photo")

    loader = iter(DataLoader(Broken(), batch_sampler=make()))
    before = generators()
    with pytest.raises(OSError, match="no such photo"):
        next(loader)
    np.testing.assert_equal(generators(), before)


def test_looking_at_a_batch_does_not_disturb_the_training_stream():
    batch = make().batch(3)
    before = generators()
    assert sorted(batch) == sorted(batch[:])
    assert list(batch) == batch[:]
    assert pickle.loads(pickle.dumps(batch)) == batch
    np.testing.assert_equal(generators(), before)


def test_a_batch_goes_to_a_worker_whole():
    copy = pickle.loads(pickle.dumps(make(seed=5).batch(3)))
    assert (type(copy), copy.seed, copy.step) == (Batch, 5, 3)


def test_no_worker_is_left_behind():
    loader = iter(DataLoader(Noise(), batch_sampler=make(), num_workers=2))
    next(loader)
    del loader
    assert not multiprocessing.active_children()


def test_a_run_hands_out_batches_of_its_seed_and_step(volume):
    with modalkit.run("r", volume=volume, mount=volume.mount, seed=9) as run:
        batches = run.batches(23, 4)
        assert batches.steps_per_epoch == 5
        for step, batch in zip(run.steps(3), batches, strict=False):
            assert batch == make(seed=9).batch(step)
    with modalkit.run("r", volume=volume, mount=volume.mount, seed=9) as run:
        assert next(iter(run.batches(23, 4))) == make(seed=9).batch(3)
        assert run.batches(23, 4, shuffle=False).batch(0) == [0, 1, 2, 3]
        assert run.batches(23, 4, drop_last=False).steps_per_epoch == 6
