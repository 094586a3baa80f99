"""`modalkit local images`: what the images of the apps on a plane would hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click

from modalkit.local import LocalPlane
from modalkit.local.reports import ImageInfo


@click.command(short_help="Show what the images of the apps would hold.")
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The state directory of the plane.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def images(*, state: Path | None, as_json: bool) -> None:
    """
    Show what was recorded of the images of a plane's apps, and what this machine has instead.

    Nothing is built here. Shown are the base and Python, the packages with the version asked for
    and the one here, the environment, the files that were added, and the build steps that were
    not run or could not be read.

    \b
    Examples:
      modalkit local images
      modalkit local images --json --state ./plane
    """
    found = LocalPlane.attach(state).images()
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
