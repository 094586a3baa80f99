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


@pytest.fixture
def container(monkeypatch):
    """Return a function that makes this process run in the container of that id, None for none."""
    monkeypatch.setattr(renew, "_renewed_in", None)

    def enter(task_id):
        if task_id is None:
            monkeypatch.delenv("MODAL_TASK_ID", raising=False)
        else:
            monkeypatch.setenv("MODAL_TASK_ID", task_id)

    return enter


def test_runs_renew_once_in_each_container(memory, container, monkeypatch):
    openssl = []
    monkeypatch.setattr(_ssl, "RAND_add", lambda data, entropy: openssl.append(data))
    draws = []
    for task_id in ("ta-maker", "ta-maker", "ta-clone", "ta-other", "ta-other"):
        memory()
        container(task_id)
        before = len(openssl)
        tempfile.mktemp()
        renew.renew_once_per_container()
        assert (tempfile._name_sequence is None) is (len(openssl) > before)
        draws.append(draw())
    memory()
    seeded = draw()
    first, second, third, fourth, fifth = draws
    assert second == fifth == seeded  # the second run of a container goes on with what it has
    assert len({first, third, fourth, seeded}) == 4
    assert len(set(openssl)) == 3


def test_outside_of_a_container_a_run_renews_nothing(memory, container):
    memory()
    expected = draw()
    memory()
    container(None)
    renew.renew_once_per_container()
    assert draw() == expected


def test_what_a_trainer_renewed_is_not_renewed_by_its_first_run(memory, container):
    container("ta-trainer")
    renew.record_renewal()
    memory()
    expected = draw()
    memory()
    renew.renew_once_per_container()
    assert draw() == expected


def test_nothing_is_loaded_for_it():
    code = (
        "import sys; from modalkit.snapshots import renew\n"
        "heavy = ('_ssl', 'tempfile', 'random', 'numpy', 'torch')\n"
        "renew.renew_os(); renew.renew_generators()\n"
        "assert not [name for name in heavy if name in sys.modules], heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=sys.path[0] or None)
