"""``nray config``: look at a configuration without starting anything."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from nray.cli.command import Group

if TYPE_CHECKING:
    from nray.config.schema import Config

# The configuration's modules load a YAML library: they are imported where used, so that other
# commands start without.


@click.group(cls=Group)
def config() -> None:
    """Check a configuration file, or show what it amounts to.

    Example: nray config check nray-conf.yaml
    """


@config.command(short_help="Say whether FILE is right, and what is wrong with it.")
@click.argument("file", type=click.Path())
def check(file: str) -> None:
    """Say whether FILE is right, and if not, all that is wrong with it.

    Prints "FILE: ok" and ends with 0, or prints each mistake with its line and what would be
    right, and ends with 2. What is allowed and most likely not meant is a warning.

    Example: nray config check nray-conf.yaml
    """
    from nray.config.rules import exposed, warnings

    read = _load(file)
    for warning in [*warnings(read), *exposed(read, file)]:
        click.echo(f"{file}: warning: {warning}", err=True)
    click.echo(f"{file}: ok")


@config.command(short_help="Print FILE with every default filled in.")
@click.argument("file", type=click.Path())
def show(file: str) -> None:
    """Print FILE with every default filled in, as YAML that nray reads.

    What is written as !env NAME or !file PATH is printed so; passwords that are not are masked.

    Example: nray config show nray-conf.yaml | less
    """
    from nray.config.writer import to_yaml

    click.echo(to_yaml(_load(file)), nl=False)


def _load(file: str) -> Config:
    """The configuration; mistakes go to stderr, in the form that editors jump to, and end it."""
    from nray.config.errors import ConfigError
    from nray.config.reader import load

    try:
        return load(file)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(error.exit_status)
