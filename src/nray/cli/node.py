"""``nray node``: scan for a server."""

from __future__ import annotations

from typing import Any

import click

from nray import __version__
from nray.cli.command import VERSION_MESSAGE, Command, Number


@click.command(
    name="node",
    cls=Command,
    example="nray node -s 198.18.0.1 --use-tls --tls-ca-cert ca.pem",
)
@click.option(
    "-s",
    "--server",
    "host",
    default="localhost",
    show_default=True,
    metavar="ADDR",
    help="Server to scan for.",
)
@click.option(
    "-p",
    "--port",
    type=Number("a port", 1, 65535),
    default=8601,
    show_default=True,
    metavar="N",
    help="Its port.",
)
@click.option("--node-name", metavar="NAME", help="Cut at 32 characters. [default: host name]")
@click.option(
    "--preferred-pool",
    type=Number("a pool", -1),
    default=-1,
    show_default=True,
    metavar="N",
    help="Pool to join; -1: none.",
)
@click.option("--use-tls", is_flag=True, help="Talk over TLS.")
@click.option(
    "--tls-insecure", is_flag=True, help="Take any server for the right one: it can be anybody."
)
@click.option("--tls-ca-cert", metavar="F", help="Authority that vouches for the server.")
@click.option("--tls-crl", metavar="F", help="Its list of revoked certificates (CRL).")
@click.option("--tls-client-cert", metavar="F", help="This node's certificate.")
@click.option("--tls-client-key", metavar="F", help="Its key.")
@click.option(
    "--tls-server-SAN",
    "tls_server_san",
    metavar="NAME",
    help="Name to find in the server's certificate instead of ADDR.",
)
@click.option(
    "--bundle", metavar="F", help="Certificate, key and authority in one file (nray certs)."
)
@click.option(
    "--processes",
    type=Number("a number of processes", 1, 1024),
    metavar="N",
    help="Worker processes. [default: one a core]",
)
@click.option(
    "--policy", metavar="F", help="What this node will ever scan, whatever its server says."
)
@click.option(
    "--xdp", is_flag=True, help="In SYN scans: send by AF_XDP, faster, unseen by captures."
)
@click.option("--stay", is_flag=True, help="Wait for the next scan instead of ending with this.")
@click.option(
    "--allow-plaintext",
    is_flag=True,
    help="Talk without TLS to a server that is not on this machine.",
)
@click.option("--debug", is_flag=True, help="Tell more in the log.")
@click.version_option(__version__, "-V", "--version", prog_name="nray", message=VERSION_MESSAGE)
def node(**options: Any) -> int:
    """Scan for a server, until it says that the scan is over.

    \b
    Examples:
      nray node -s scan.example.org --use-tls --tls-ca-cert ca.pem \\
          --tls-client-cert client.pem --tls-client-key client-key.pem
      nray node -s 198.18.0.1 --use-tls --tls-ca-cert ca.pem \\
          --tls-server-SAN localhost --node-name nyc1 --stay
      nray node -s scan.example.org --bundle nyc1.nray
    """
    from nray.api.attend import NodeTlsFiles, attend
    from nray.cli.logs import start_logging

    start_logging(debug=options["debug"])
    return attend(
        host=options["host"],
        port=options["port"],
        name=options["node_name"],
        preferred_pool=options["preferred_pool"],
        processes=options["processes"] or 0,
        stay=options["stay"],
        allow_plaintext=options["allow_plaintext"],
        policy=options["policy"],
        xdp=options["xdp"],
        tls=NodeTlsFiles(
            use=options["use_tls"],
            insecure=options["tls_insecure"],
            ca_cert=options["tls_ca_cert"],
            client_cert=options["tls_client_cert"],
            client_key=options["tls_client_key"],
            server_name=options["tls_server_san"],
            bundle=options["bundle"],
            crl=options["tls_crl"],
        ),
    )
