"""Volumes for runs, and a run that nothing interrupted."""

from __future__ import annotations

import pytest

from tests.support.training import Outcome, Training
from tests.support.volumes import DirectoryVolume


@pytest.fixture
def volume(tmp_path):
    return DirectoryVolume(tmp_path)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The outcome of a run that nothing interrupted."""
    volume = DirectoryVolume(tmp_path_factory.mktemp("uninterrupted"))
    Training(volume).fit()
    return Outcome(volume)
