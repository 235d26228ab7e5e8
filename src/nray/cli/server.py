"""``nray server``: serve a scan to nodes."""

from __future__ import annotations

import click

from nray.cli.command import Command


@click.command(name="server", cls=Command, example="nray server -c conf.yaml")
@click.option("-c", "--config", required=True, metavar="FILE", help="Configuration, YAML.")
@click.option(
    "--allow-plaintext",
    is_flag=True,
    help="Serve without TLS on other addresses than loopback too.",
)
@click.option("--debug", is_flag=True, help="Tell more in the log.")
def server(config: str, allow_plaintext: bool, debug: bool) -> int:
    """Serve the scan of a configuration file to nodes, and end with it.

    The first Ctrl+C stops the nodes, keeps what was found, and ends; the third
    ends at once.

    \b
    Examples:
      nray server -c conf.yaml
      nray config check conf.yaml
    """
    from nray.api.serve import serve
    from nray.cli.logs import start_logging
    from nray.config.reader import load

    settings = load(config)
    start_logging(debug=debug or settings.debug)
    return serve(settings, name=config, allow_plaintext=allow_plaintext)
