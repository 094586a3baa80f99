"""The order of the suite: with two processes, what takes longest must not come last."""

import os
import signal

import pytest
from hypothesis import settings

# Most of a short test's time goes into interpreters that import modal. `make test-all` starts an
# interpreter for every container.
os.environ.setdefault("MODALKIT_LOCAL_QUICK_STARTS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)  # clients of tests are interrupted
settings.register_profile("suite", deadline=None)  # times on busy machines say nothing
settings.load_profile("suite")

LONGEST = ("test_kills", "test_guide", "test_switches", "test_run_on_plane", "test_soak")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the rest keeps its order."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
