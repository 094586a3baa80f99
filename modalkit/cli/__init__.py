"""The `modalkit` command; one file per group of subcommands."""

from __future__ import annotations

import sys

import click

import modalkit
from modalkit.cli.local import local
from modalkit.errors import ModalkitError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(modalkit.__version__, prog_name="modalkit")
def cli() -> None:
    """Train on Modal so that a preemption costs nothing, and prove it on this machine first."""


cli.add_command(local)


def main() -> None:
    """Run the command line; an error of modalkit's own is one sentence and exit code 1."""
    try:
        cli()
    except ModalkitError as error:
        click.echo(f"modalkit: {error}", err=True)
        sys.exit(1)
