"""
What importing modalkit costs, in fresh processes.

Whole processes are compared, in turns, so that a load of the machine meets both sides alike: the
cost of a bare interpreter is taken off by the difference, and ratios are medians of pairs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from time import perf_counter

from benchmarks.metrics import Metric

HEAVY = ("torch", "modal", "structlog", "grpclib", "numpy", "rich", "tenacity")
BARE = "pass"
MODALKIT = "import modalkit"
MODAL = "import modal"
WITH_MODAL = "import modal; from modalkit import SnapshotTrainer, RetryPolicy"


def measure(*, quick: bool) -> list[Metric]:
    """Measure the three figures that modalkit promises about its imports."""
    rounds = 11 if quick else 25
    heavy = heavy_modules()
    alone_ms = [1000 * (b - a) for a, b in pairs(BARE, MODALKIT, rounds)]
    added = [100 * (b / a - 1) for a, b in pairs(MODAL, WITH_MODAL, rounds)]
    if heavy:
        print(f"import modalkit also imports {', '.join(heavy)}", file=sys.stderr)
    return [
        Metric(id="import_modalkit_ms", value=statistics.median(alone_ms), floor=60, stretch=15),
        Metric(id="import_heavy_modules", value=len(heavy), floor=0, stretch=0),
        Metric(id="import_added_percent", value=statistics.median(added), floor=8, stretch=4),
    ]


def heavy_modules() -> list[str]:
    """Return what `import modalkit` alone should not have imported and did."""
    code = f"{MODALKIT}; import sys, json; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    return [name for name in HEAVY if name in json.loads(done.stdout)]


def pairs(first: str, second: str, rounds: int) -> list[tuple[float, float]]:
    """Run both programs in turns; return the seconds of each pair, after one for the caches."""
    return [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]


def seconds(code: str) -> float:
    """Run a program in a fresh interpreter and return how long it took, start to end."""
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return perf_counter() - begin
