"""Run a benchmark, print its metrics, and fail when one misses its floor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from benchmarks import imports, plane
from benchmarks.metrics import Metric

BENCHMARKS = {"imports": imports.measure, "plane": plane.measure}


@click.command()
@click.argument("name", type=click.Choice(sorted(BENCHMARKS)))
@click.option("--quick", is_flag=True, help="Fewer repetitions: for a check, not for a record.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the metrics to this file too.",
)
def main(name: str, file: Path | None, *, quick: bool) -> None:
    """Measure NAME; the last line of stdout is {"metrics": [...]}."""
    metrics: list[Metric] = BENCHMARKS[name](quick=quick)
    for metric in metrics:
        click.echo(metric.line(), err=True)
    text = json.dumps({"metrics": [metric.to_json() for metric in metrics]})
    if file:
        file.write_text(text + "\n")
    click.echo(text)
    sys.exit(not all(metric.ok for metric in metrics))


if __name__ == "__main__":
    main()
