"""The reference page says what the code says, and its rows are proved."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from modalkit.local.coverage import AREAS, Row, Status
from modalkit.local.reference import render

ROOT = Path(__file__).parents[2]
ROWS = [row for rows in AREAS.values() for row in rows]


def test_the_page_is_not_out_of_date() -> None:
    page = (ROOT / "docs" / "reference" / "local-plane.md").read_text()
    assert page == render(), "run `make reference`"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.feature)
def test_a_row_is_proved_or_says_what_is_missing(row: Row) -> None:
    assert row.tests or row.status is not Status.MODELLED
    assert row.how or row.status is Status.MODELLED
    if row.status is Status.NOT:
        assert re.search("refused|warns|said|in silence", row.how)
    for test in row.tests:
        file, name = test.split("::")
        assert name in _tests_in(ROOT / "tests" / file), test


@cache
def _tests_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
