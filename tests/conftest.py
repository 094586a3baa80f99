"""The order of the suite: with two processes, what takes longest must not come last."""

import pytest

LONGEST = ("test_kills", "test_guide", "test_switches", "test_run_on_plane", "test_soak")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the rest keeps its order."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
