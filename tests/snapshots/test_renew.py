"""Renewal: what a snapshot would make common to all containers becomes new."""

from __future__ import annotations

import _ssl
import random
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

from modalkit.snapshots import renew


def draw():
    return (
        random.random(),
        float(np.random.rand()),
        float(torch.rand(1)),
    )


@pytest.fixture
def memory():
    """Return a function that puts all generators back, as a restore of a snapshot does."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def restore():
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    yield restore
    restore()


def test_generators_differ_after_a_restore(memory):
    draws = []
    for _ in range(2):
        memory()
        renew.renew_generators()
        draws.append(draw())
    assert all(one != other for one, other in zip(*draws, strict=True))


def test_without_renewal_a_restore_repeats_them(memory):
    """The control: the test above would see it if nothing were renewed."""
    draws = []
    for _ in range(2):
        memory()
        draws.append(draw())
    assert draws[0] == draws[1]


def test_the_os_part_leaves_seeded_generators_alone(memory):
    memory()
    renew.renew_os()
    one = draw()
    memory()
    assert draw() == one


def test_temporary_names_differ_after_a_restore():
    """The module tempfile draws names from a generator of its own, which a snapshot holds too."""
    names = []
    tempfile.mktemp()
    state = tempfile._name_sequence.rng.getstate()
    for renewed in (False, False, True):
        tempfile._name_sequence.rng.setstate(state)
        if renewed:
            renew.renew_os()
        names.append(tempfile.mktemp())
    assert names[0] == names[1] != names[2]


def test_openssl_gets_fresh_bytes_each_time(monkeypatch):
    """Its state cannot be put back inside one process, so what it is given is watched."""
    given = []
    monkeypatch.setattr(_ssl, "RAND_add", lambda data, entropy: given.append((data, entropy)))
    renew.renew_os()
    renew.renew_os()
    (first, entropy), (second, _) = given
    assert len(first) == len(second) == entropy == 64
    assert first != second


def test_nothing_is_loaded_for_it():
    code = (
        "import sys; from modalkit.snapshots import renew\n"
        "heavy = ('_ssl', 'tempfile', 'random', 'numpy', 'torch')\n"
        "renew.renew_os(); renew.renew_generators()\n"
        "assert not [name for name in heavy if name in sys.modules], heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=sys.path[0] or None)
