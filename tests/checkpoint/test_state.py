"""Live objects: what is captured goes back whole, or nothing is changed."""

from __future__ import annotations

import copy
import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from modalkit.checkpoint import state
from modalkit.checkpoint.store import Store, read
from modalkit.errors import CheckpointError, CheckpointMismatchError, RunError


class Disk:
    """Save objects to a store, and put them back into others."""

    def __init__(self, directory) -> None:
        self.directory = directory

    def save(self, **objects) -> None:
        values = {"objects": state.describe(objects)}
        store = Store(self.directory / "checkpoints", writer="w", epoch=1)
        store.publish(0, {"objects": state.capture(objects), "values": values})

    def load(self, **objects) -> None:
        loaded = read(self.directory)
        state.restore(objects, loaded.objects, loaded.values["objects"])


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


class Net(nn.Module):
    """All that modules have: tied weights, buffers, batch norm, mixed dtypes, extra state."""

    def __init__(self, seed: int, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.mixed = nn.Linear(width, width).bfloat16()
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("counts", torch.randint(0, 9, (3,)))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.note = {"seed": seed}

    def forward(self, tokens):
        hidden = self.norm(self.embed(tokens))
        return self.head(self.mixed(hidden.bfloat16()).float())

    def get_extra_state(self):
        return self.note

    def set_extra_state(self, extra) -> None:
        self.note = extra


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.tensor([0, 1, 2, 3])).square().mean().backward()
        optimizer.step()


def same_tree(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_tree(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_tree, a, b))
    return a == b


# ---- modules ------------------------------------------------------------------------------------


def test_a_module_is_restored_into_its_own_tensors(disk):
    old, new = Net(1), Net(2)
    addresses = [p.data_ptr() for p in new.parameters()]
    disk.save(model=old)
    disk.load(model=new)
    assert same_tree(dict(old.state_dict()), dict(new.state_dict()))
    assert [p.data_ptr() for p in new.parameters()] == addresses
    assert new.head.weight is new.embed.weight
    assert new.note == {"seed": 1}
    assert all(p.requires_grad and p.is_leaf for p in new.parameters())


def test_what_differs_is_shown_as_a_table_and_nothing_is_changed(disk):
    other = nn.Linear(2, 2)
    disk.save(model=Net(1), other=other)
    model = Net(2, width=8)
    model.extra = nn.Linear(1, 1, bias=False)
    model.counts = model.counts.float()
    before = copy.deepcopy(model.state_dict())
    fresh = nn.Linear(2, 2)
    untouched = fresh.weight.clone()
    with pytest.raises(CheckpointMismatchError) as caught:
        disk.load(other=fresh, model=model)
    table = str(caught.value)
    assert "nothing was changed" in table
    rows = {tuple(re.split(r"\s{2,}", line.strip())) for line in table.splitlines()}
    assert ("model.embed.weight", "float32 [5, 6]", "float32 [5, 8]") in rows
    assert ("model.counts", "int64 [3]", "float32 [3]") in rows
    assert ("model.extra.weight", "-", "float32 [1, 1]") in rows
    assert same_tree(dict(before), dict(model.state_dict()))
    assert torch.equal(fresh.weight, untouched)


def test_a_long_table_is_cut(disk):
    disk.save(model=nn.ModuleList(nn.Linear(1, 1) for _ in range(30)))
    with pytest.raises(CheckpointMismatchError, match=r"and 40 more"):
        disk.load(model=nn.ModuleList(nn.Linear(2, 2) for _ in range(30)))


def test_objects_that_are_missing_or_new_are_differences(disk):
    disk.save(model=Net(1), ema=nn.Linear(1, 1))
    with pytest.raises(CheckpointMismatchError, match=r"ema +module +-\n +head +- +module"):
        disk.load(model=Net(1), head=nn.Linear(1, 1))


def test_an_object_of_another_kind_is_a_difference(disk):
    disk.save(x=torch.zeros(3))
    with pytest.raises(CheckpointMismatchError, match=r"x +tensor +module"):
        disk.load(x=nn.Linear(1, 1))


# ---- optimizers ---------------------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw-capturable-lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_optimizer_that_made_its_state_lazily_goes_on_as_if_nothing_had_happened(disk, make):
    model = Net(1)
    optimizer = make(model.parameters())
    train(model, optimizer)
    disk.save(model=model, optimizer=optimizer)
    fresh = Net(2)
    resumed = make(fresh.parameters())
    disk.load(model=fresh, optimizer=resumed)
    assert same_tree(optimizer.state_dict(), resumed.state_dict())
    train(model, optimizer)
    train(fresh, resumed)
    assert same_tree(dict(model.state_dict()), dict(fresh.state_dict()))
    assert same_tree(optimizer.state_dict(), resumed.state_dict())


class FloatMoments(torch.optim.Optimizer):
    """Momentum in fp32 for parameters of any dtype, nested as some optimizers have it."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                own = self.state[p]
                own.setdefault("moment", torch.zeros_like(p, dtype=torch.float32))
                own.setdefault("step", torch.zeros((), dtype=torch.int64))
                own.setdefault("blocks", {"scales": (torch.ones(2, dtype=torch.float64), 3)})
                own["moment"].mul_(0.9).add_(p.grad.float(), alpha=1 / 3)
                own["blocks"]["scales"][0].add_(1e-17 + 1 / 3)
                own["step"] += 1
                p.add_(own["moment"].to(p.dtype), alpha=-group["lr"])


def test_moments_keep_a_dtype_that_load_state_dict_would_change(disk):
    model = nn.Linear(4, 4).bfloat16()
    optimizer = FloatMoments(model.parameters())
    model(torch.ones(1, 4).bfloat16()).sum().backward()
    optimizer.step()
    # What torch alone does, or this test would show nothing.
    plain = FloatMoments(model.parameters())
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert plain.state[model.weight]["moment"].dtype == torch.bfloat16

    disk.save(optimizer=optimizer)
    resumed = FloatMoments(model.parameters())
    disk.load(optimizer=resumed)
    assert same_tree(optimizer.state_dict(), resumed.state_dict())
    own = resumed.state[model.weight]
    assert own["moment"].dtype == torch.float32
    assert own["step"].dtype == torch.int64
    assert own["blocks"]["scales"][0].dtype == torch.float64


def test_an_optimizer_of_other_parameters_is_a_mismatch_by_their_shapes(disk):
    disk.save(optimizer=torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=0.1))
    with pytest.raises(
        CheckpointMismatchError,
        match=r"optimizer.param_groups.0.params.0 +float32 \[3, 2\] +float32 \[5, 2\]",
    ):
        disk.load(optimizer=torch.optim.SGD(nn.Linear(2, 5).parameters(), lr=0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4]),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, total_iters=3),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
            ],
            milestones=[3],
        ),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
        lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
    ],
    ids=[
        "step",
        "multi",
        "restarts",
        "one-cycle",
        "lambda",
        "sequential",
        "plateau",
        "cyclic",
        "swa",
    ],
)
def test_schedulers_go_on(disk, make):
    def begin():
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
        return optimizer, make(optimizer)

    def advance(optimizer, scheduler, steps):
        rates = []
        for _ in range(steps):
            optimizer.step()
            is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(1.0) if is_plateau else scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    optimizer, scheduler = begin()
    advance(optimizer, scheduler, 4)
    disk.save(optimizer=optimizer, scheduler=scheduler)
    resumed_optimizer, resumed = begin()
    disk.load(optimizer=resumed_optimizer, scheduler=resumed)
    assert advance(optimizer, scheduler, 6) == advance(resumed_optimizer, resumed, 6)


# ---- everything else ----------------------------------------------------------------------------


def test_plain_tensors_and_arrays_are_filled_in_place(disk):
    tensor, array = torch.randn(3, requires_grad=True), np.arange(3.0)
    disk.save(tensor=tensor, array=array)
    live, live_array = torch.zeros(3, requires_grad=True), np.zeros(3)
    disk.load(tensor=live, array=live_array)
    assert torch.equal(live, tensor)
    assert live.requires_grad
    assert np.array_equal(live_array, array)


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (random.Random, lambda g: [g.random(), g.gauss(0, 1)]),
        (lambda s: torch.Generator().manual_seed(s), lambda g: torch.rand(3, generator=g).tolist()),
        (np.random.default_rng, lambda g: [g.random(), g.normal(), g.integers(2**40)]),
        (lambda s: np.random.Generator(np.random.MT19937(s)), lambda g: [g.random()]),
        (np.random.RandomState, lambda g: [g.rand(), g.randn()]),
    ],
    ids=["random.Random", "torch.Generator", "default_rng", "MT19937", "RandomState"],
)
def test_generators_go_on(disk, make, draw):
    generator = make(3)
    draw(generator)
    disk.save(generator=generator)
    resumed = make(4)
    disk.load(generator=resumed)
    assert draw(resumed) == draw(generator)


def test_a_generator_of_another_algorithm_is_a_mismatch(disk):
    disk.save(g=np.random.default_rng(1))
    with pytest.raises(CheckpointMismatchError, match=r"PCG64 +MT19937"):
        disk.load(g=np.random.Generator(np.random.MT19937(1)))


def test_a_grad_scaler_goes_on(disk):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 5})
    disk.save(scaler=scaler)
    resumed = torch.amp.GradScaler("cpu")
    disk.load(scaler=resumed)
    assert resumed.state_dict() == scaler.state_dict()


class Loader:
    """A loader with a state of its own."""

    def __init__(self) -> None:
        self.position = {"epoch": 0, "index": (0, 0)}

    def state_dict(self):
        return self.position

    def load_state_dict(self, position) -> None:
        self.position = position


def test_anything_with_state_dict_is_taken(disk):
    loader = Loader()
    loader.position = {"epoch": 2, "index": (3, 4), "order": torch.arange(3)}
    disk.save(loader=loader)
    resumed = Loader()
    disk.load(loader=resumed)
    assert same_tree(resumed.position, loader.position)


@pytest.mark.parametrize("value", [3, {"lr": 0.1}, [nn.Linear(1, 1)], lambda: None, None])
def test_what_has_no_state_is_refused_by_name(value):
    with pytest.raises(RunError, match=r"thing=.* no state that can be saved.*run\.extra"):
        state.describe({"thing": value})


def test_an_object_that_refuses_its_state_is_named(disk):
    class Broken(Loader):
        def load_state_dict(self, position) -> None:
            raise ValueError("no such shard")

    disk.save(loader=Loader())
    with pytest.raises(
        CheckpointMismatchError, match=r"loader \(.*Broken\) refused .*no such shard"
    ):
        disk.load(loader=Broken())


def test_a_module_that_changes_what_it_loads_is_found_out(disk):
    class Rounding(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            with torch.no_grad():
                self.weight.round_()

    model = Rounding(3, 3)
    disk.save(model=model)
    with pytest.raises(CheckpointError, match=r"model\.weight: after it was restored"):
        disk.load(model=Rounding(3, 3))


def test_restored_tensors_do_not_share_memory_with_each_other(disk):
    """An optimizer whose state is equal in two places must still have two tensors."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    disk.save(model=model, optimizer=optimizer)
    disk.load(model=model, optimizer=optimizer)
    buffers = [own["momentum_buffer"].data_ptr() for own in optimizer.state.values()]
    assert len(set(buffers)) == len(buffers)


def test_an_optimizer_or_scheduler_of_another_class_is_refused_by_both_names():
    model = torch.nn.Linear(2, 2)
    saved = torch.optim.AdamW(model.parameters())
    live = torch.optim.Adam(model.parameters())
    schedulers = torch.optim.lr_scheduler
    for objects, others, says in (
        ({"o": saved}, {"o": live}, r"o\.class +AdamW +Adam"),
        (
            {"s": schedulers.StepLR(saved, 1)},
            {"s": schedulers.ExponentialLR(live, 0.5)},
            r"s\.class +StepLR +ExponentialLR",
        ),
    ):
        described = state.describe(objects)
        with pytest.raises(CheckpointMismatchError, match=says):
            state.restore(others, state.capture(objects), described)
        state.restore(objects, state.capture(objects), described)
