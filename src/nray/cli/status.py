"""``nray status``: how the scan in a ledger stands."""

from __future__ import annotations

import click

from nray.cli.command import Command


@click.command(name="status", cls=Command, example="nray status conf.yaml.ledger")
@click.argument("state", metavar="STATE")
def status(state: str) -> int:
    """Show what is done and what is missing of a scan.

    STATE is a ledger: of a server the configuration's name with .ledger behind
    it, of a scan the file of --state. It may be in use.

    \b
    Examples:
      nray status conf.yaml.ledger
      nray status scan.state
    """
    from nray.api.standing import standing_lines

    for line in standing_lines(state):
        click.echo(line)
    return 0
