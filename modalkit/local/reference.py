"""
Writes docs/reference/local-plane.md from the code: `python -m modalkit.local.reference`.

The semantics come from `coverage`, the unknowns from `switches`, the RPCs from the handlers and
from `features`. A test compares the file with what this module writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby

import attrs

from modalkit.local.coverage import AREAS, Row, Status
from modalkit.local.features import Rpc, rpcs
from modalkit.local.services import HANDLERS
from modalkit.local.switches import Switches

HEAD = """# What the local plane models

Written from the code by `make reference`; a test fails when this page is out of date.

The modal client and the container entrypoint are the real ones, so whatever is decided on their
side is as on Modal. This page is about the other side, Modal's servers, which the plane stands
in for. **Nothing here was compared with Modal's servers**: "modelled" means that the plane does
what Modal's documentation and its client say, and that a test named beside it fails otherwise.

| status | meaning |
| --- | --- |
| modelled | as documented; with a difference, where one is named |
| partly | not all of it; what is missing is named |
| not modelled | refused, or without effect: the plane warns, or the row says "in silence" |
| unknown on Modal | nobody outside knows; a switch takes each plausible reading |
"""
UNKNOWNS = """## Unknown on Modal: the switches

Each switch has all plausible readings, the best for an app first. `--profile lenient` takes the
first of each and is the default, `--profile strict` the last, and a number draws one of each;
`--profile strict,same_input_twice=never` changes single ones. In Python: `LocalPlane(profile=...)`,
for whole test suites the environment variable `MODALKIT_LOCAL_PROFILE`.
"""
RPCS = """## RPCs

An RPC that is not modelled fails with `UnimplementedError`, which names the RPC, the version of
modal and the feature that needs it. One that is partly modelled is answered, and nothing
follows from it.
"""


def render() -> str:
    """Return the whole page."""
    parts = [HEAD]
    parts += [f"## {area}\n\n{_semantics(rows)}" for area, rows in AREAS.items()]
    parts += [UNKNOWNS, _switches(), RPCS, _rpcs(rpcs(HANDLERS))]
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _semantics(rows: Iterable[Row]) -> str:
    return _table(
        ("what", "status", "how", "shown by"),
        ((row.feature, row.status.value, row.how, _tests(row)) for row in rows),
    )


def _tests(row: Row) -> str:
    return ", ".join(f"`{test}`" for test in row.tests)


def _switches() -> str:
    return _table(
        ("switch", "unknown on Modal", "readings, best first"),
        (
            (
                f"`{field.name}`",
                field.metadata["question"],
                "; ".join(
                    f"**{name}**: {text}" for name, text in field.metadata["readings"].items()
                ),
            )
            for field in attrs.fields(Switches)
        ),
    )


def _rpcs(found: Iterable[Rpc]) -> str:
    order = list(Status)
    by_feature = sorted(found, key=lambda rpc: (rpc.feature, order.index(rpc.status), rpc.name))
    return _table(("feature", "status", "RPCs"), _feature_rows(by_feature))


def _feature_rows(found: Iterable[Rpc]) -> Iterator[tuple[str, str, str]]:
    for feature, members in groupby(found, key=lambda rpc: rpc.feature):
        for status, group in groupby(members, key=lambda rpc: rpc.status):
            yield feature, status.value, ", ".join(rpc.name for rpc in group)


if __name__ == "__main__":
    sys.stdout.write(render())
