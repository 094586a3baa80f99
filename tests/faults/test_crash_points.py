"""A training killed before any change to the disk ends, resumed, as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """The uninterrupted outcome, and one result per crash point."""
    root = tmp_path_factory.mktemp("crashes")
    result = subprocess.run(
        [sys.executable, HERE.with_name("victim.py"), root],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PYTHONPATH": str(HERE.parents[2]), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    whole, *crashes = map(json.loads, result.stdout.splitlines())
    return whole["outcome"], crashes


def test_every_change_was_a_crash_point(campaign):
    _, crashes = campaign
    assert len(crashes) > 40, "run.json, ledger, events, packs, manifests, pruning"
    assert [crash["number"] for crash in crashes] == list(range(1, len(crashes) + 1))
    assert {crash["acknowledged"] for crash in crashes} == {None, 0, 1, 2}


@pytest.mark.parametrize("tree", ["committed", "view"])
def test_the_next_attempt_ends_as_if_nothing_had_happened(campaign, tree):
    outcome, crashes = campaign
    for crash in crashes:
        assert crash[tree]["status"] == 0, crash
        assert crash[tree]["outcome"] == outcome, crash["number"]


@pytest.mark.parametrize("tree", ["committed", "view"])
def test_what_a_commit_acknowledged_is_never_lost(campaign, tree):
    _, crashes = campaign
    for crash in crashes:
        resumed_at = crash[tree]["resumed_at"]
        if crash["acknowledged"] is not None:
            assert resumed_at is not None, crash["number"]
            assert resumed_at >= crash["acknowledged"], crash["number"]


@pytest.mark.parametrize("tree", ["committed", "view"])
def test_no_manifest_is_ever_there_before_its_data(campaign, tree):
    _, crashes = campaign
    assert not [crash["number"] for crash in crashes if crash[tree]["skipped"]]


@pytest.mark.parametrize("tree", ["committed", "view"])
def test_what_a_killed_attempt_left_is_swept(campaign, tree):
    _, crashes = campaign
    for crash in crashes:
        assert not crash[tree]["litter"], crash["number"]
        assert crash[tree]["packs"] == crash[tree]["manifests"] == 1, crash["number"]
