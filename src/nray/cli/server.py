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
@click.option("--resume", is_flag=True, help="Go on with the scan in the configuration's ledger.")
@click.option("--debug", is_flag=True, help="Tell more in the log.")
def server(config: str, allow_plaintext: bool, resume: bool, debug: bool) -> int:
    """Serve the scan of a configuration file to nodes, and end with it.

    Its state is kept in a ledger beside the configuration. The first Ctrl+C stops
    the nodes, keeps what was found, and ends; the second ends at once. After
    either, and after a crash, --resume goes on where the ledger stands. SIGUSR1
    pauses the scan, and again goes on; SIGHUP reads certificates again at once.

    \b
    Examples:
      nray server -c conf.yaml
      nray server -c conf.yaml --resume
      nray config check conf.yaml
    """
    from nray.api.serve import serve
    from nray.cli.logs import start_logging
    from nray.config.reader import load

    settings = load(config)
    start_logging(debug=debug or settings.debug)
    return serve(settings, name=config, allow_plaintext=allow_plaintext, resume=resume)
