"""`modalkit local images`: what the images of the apps on a plane would hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import click

from modalkit.errors import PlaneStartError
from modalkit.local.plane import images_of
from modalkit.local.reports import ImageInfo

PLANE = "MODALKIT_LOCAL_PLANE"


@click.command(short_help="Show what the images of the apps would hold.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def images(*, as_json: bool) -> None:
    r"""
    Show what was recorded of the images of a plane's apps, and what this machine has instead.

    Nothing is built here. Shown are the base and Python, the packages with the version asked for
    and the one here, the environment, the files that were added, and the build steps that were
    not run or could not be read.

    \b
    Examples:
      eval "$(modalkit local env)" && modalkit local images
      modalkit local images --json
    """
    directory = os.environ.get(PLANE)
    if not directory:
        raise PlaneStartError(f'{PLANE} names no plane; run eval "$(modalkit local env)"')
    found = images_of(Path(directory))
    if as_json:
        print(json.dumps([attrs.asdict(image) for image in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    if not found:
        console.print("no app on this plane has used an image yet")
    for image in found:
        console.print(_table(image))


def _table(image: ImageInfo) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{image.id} of {', '.join(image.functions)}"), title_justify="left")
    for column in ("", "image", "here"):
        table.add_column(column)
    table.add_row("base", escape(image.base or "unknown"), "")
    table.add_row("Python", image.python or "unknown", image.python_here)
    for package in image.packages:
        style = "yellow" if package.differs else None
        asked, here = escape(package.asked or "any"), package.here or "missing"
        table.add_row(package.name, asked, here, style=style)
    rows = [
        ("env", [f"{name}={value}" for name, value in image.env.items()]),
        ("workdir", [image.workdir]),
        ("files", image.files),
        ("not run", image.not_run),
        ("not read", image.unread),
    ]
    for name, lines in rows:
        if lines:
            table.add_row(name, escape("\n".join(lines)), "")
    return table
