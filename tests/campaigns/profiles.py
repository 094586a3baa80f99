"""
Run modalkit's tests on planes, and the kill campaign, under every reading of Modal's unknowns.

    python -m tests.campaigns.profiles [--seeds 10] [--kills 30] [--seed N]

The profiles are lenient, strict and as many seeded mixes as asked for. `same_input_twice` stays at
"never": modalkit does not fence two writers of one run off from each other yet. The talk is on
stderr; the last line of stdout is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click

from modalkit.local.switches import profile

ROOT = Path(__file__).parents[2]
PYTEST = ("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
SUITE = (
    *("tests/local", "tests/testing", "tests/examples"),
    *("tests/test_run_on_plane.py", "tests/test_container_side.py"),
)
EXCEPTED = "same_input_twice=never"


def profiles(seeds: int, first: int) -> list[str]:
    """Return the profiles, each as `--profile` takes it."""
    names = ["lenient", "strict", *(str(first + number) for number in range(seeds))]
    return [f"{name},{EXCEPTED}" for name in names]


def run(command: list[str], name: str) -> bool:
    """Run one part under a profile, its output on stderr; return whether it passed."""
    click.echo(f"== {name}: {' '.join(command[2:])}", err=True)
    environment = {**os.environ, "MODALKIT_LOCAL_PROFILE": name}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
    return done.returncode == 0


@click.command()
@click.option("--seeds", default=10, show_default=True, help="Seeded mixes besides the two named.")
@click.option("--seed", default=0, show_default=True, help="The first of the seeds.")
@click.option("--kills", default=30, show_default=True, help="Kills under each profile; 0: none.")
@click.option("--suite/--no-suite", default=True, show_default=True, help="Run the suite as well.")
def main(seeds: int, seed: int, kills: int, *, suite: bool) -> None:
    """Run the suite and the kill campaign under every profile."""
    failed: list[str] = []
    names = profiles(seeds, seed)
    for name in names:
        started = time.monotonic()
        click.echo(f"{name} is {profile(name)}", err=True)
        parts = [[*PYTEST, *SUITE]] if suite else []
        if kills:
            parts.append(["-m", "tests.campaigns.kills", "--kills", str(kills)])
        failed += [f"{name}: {part[1]}" for part in parts if not run([sys.executable, *part], name)]
        click.echo(f"== {name}: {time.monotonic() - started:.0f} s", err=True)
    print(json.dumps({"profiles": len(names), "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
