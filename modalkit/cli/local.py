"""`modalkit local`: Modal apps on this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click

from modalkit.cli.secret import secret
from modalkit.local import LocalPlane

Engine = Literal["auto", "inline", "fork"]


@click.group()
def local() -> None:
    """Run Modal apps on this machine, without an account."""


local.add_command(secret)


@local.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run an app as `modal run` does, here.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "inline", "fork"]),
    default="auto",
    show_default=True,
    help="How snapshots are taken: in the same process, or by fork, restored in milliseconds.",
)
@click.option(
    "--snapshots",
    is_flag=True,
    help="Take snapshots, which `modal run` never does; deployed apps always do.",
)
@click.option(
    "--strict-image", is_flag=True, help="Fail on an import that the app's image does not install."
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the Volumes in this directory; without it they are gone at the end.",
)
@click.argument("app_ref")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    *,
    engine: Engine,
    snapshots: bool,
    strict_image: bool,
    state: Path | None,
    app_ref: str,
    arguments: tuple[str, ...],
) -> None:
    r"""
    Run APP_REF with its ARGUMENTS as `modal run APP_REF ARGUMENTS` would on Modal.

    The real modal client and the real container entrypoint run on this machine; nothing leaves it.
    The exit code is modal's.

    \b
    Examples:
      modalkit local run app.py
      modalkit local run app.py::train --epochs 3
      modalkit local run --state ./volumes --strict-image app.py::train --run-id first
    """
    plane = LocalPlane(
        state,
        engine=engine,
        snapshots=True if snapshots else None,
        strict_image=strict_image,
    )
    with plane, _interrupts_left_to_modal():
        completed = plane.run(app_ref, *arguments, check=False)
    sys.exit(completed.returncode)


@contextmanager
def _interrupts_left_to_modal() -> Iterator[None]:
    """
    Let a Ctrl-C do what it does under `modal run`: the client stops the app, containers may save.

    The client is in this process's group and hears it too. A handler, unlike SIG_IGN, is not
    inherited by it.
    """
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
