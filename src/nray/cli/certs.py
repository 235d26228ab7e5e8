"""``nray certs``: an authority of one's own, and certificates for servers and nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nray.api import interrupts
from nray.cli.command import Command, Group, Number

if TYPE_CHECKING:
    from nray.api.certs import Told

# The library that makes certificates is loaded where it is used, so that help comes at once.

DIRECTORY = "nray-ca"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class RsaBits(click.ParamType):  # type: ignore[type-arg]
    """The size of an RSA key."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size. Fails with what would be right."""
        if str(value) not in ("2048", "3072", "4096"):
            self.fail(f"{value!r} is no size of an RSA key: 2048, 3072 or 4096", param, ctx)
        return int(value)


def _directory(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "directory",
        default=DIRECTORY,
        show_default=True,
        metavar="DIR",
        help="Where the authority is.",
    )(command)


def _passphrase(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--passphrase-file",
        metavar="FILE",
        help="Its first line is the passphrase of the authority's key.",
    )(command)


def _days(what: str, default: str) -> Decorator:
    return click.option(
        "--days",
        type=Number("a number of days", 1, 36525),
        metavar="N",
        help=f"{what} [default: {default}]",
    )


def _rsa(default: str) -> Decorator:
    return click.option(
        "--rsa",
        "rsa_bits",
        type=RsaBits(),
        metavar="BITS",
        help=f"An RSA key of 2048, 3072 or 4096 bits. [default: {default}]",
    )


_OUT = click.option("--out", metavar="STEM", help="Write STEM.pem and STEM-key.pem.")
_BUNDLE = click.option(
    "--bundle", metavar="FILE", help="Write certificate, key and authority into one FILE."
)
_SERVER_NAME = click.option(
    "--server-name",
    metavar="NAME",
    help="With --bundle: the name to find in the server's certificate.",
)
_REPLACE = click.option(
    "--replace", is_flag=True, help="Put it in the place of files that are there."
)


@click.group(cls=Group, short_help="Make, renew, revoke and check certificates.")
def certs() -> None:
    """An authority of your own: certificates for the server and its nodes.

    \b
    Examples:
      nray certs init
      nray certs issue server scan.example.org 198.18.0.1
      nray certs issue node nyc1 --bundle nyc1.nray
      nray certs revoke nyc1
    """


@certs.command(cls=Command, short_help="Make an authority.")
@_directory
@click.option("--name", metavar="NAME", help="What to call it. [default: authority and a number]")
@_days("How long it lasts.", "1825")
@_rsa("P-256")
@_passphrase
def init(
    directory: str,
    name: str | None,
    days: int | None,
    rsa_bits: int | None,
    passphrase_file: str | None,
) -> None:
    """Make an authority in a new directory.

    With a passphrase, from a file or in NRAY_CA_PASSPHRASE, its key is encrypted.

    Example: nray certs init --dir nray-ca
    """
    from nray.api import certs as work

    interrupts.take_over()  # files are written

    _tell(
        work.init(
            directory,
            name=name,
            days=days or work.AUTHORITY_DAYS,
            rsa_bits=rsa_bits or 0,
            passphrase=work.passphrase(passphrase_file),
        )
    )


@certs.group(cls=Group, short_help="Issue a certificate to a server or a node.")
def issue() -> None:
    """Issue a certificate.

    \b
    Examples:
      nray certs issue server scan.example.org 198.18.0.1
      nray certs issue node nyc1 --bundle nyc1.nray
    """


@issue.command(cls=Command, example="nray certs issue server scan.example.org")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_OUT
@_days("How long it lasts.", "365")
@_rsa("P-256")
@_REPLACE
@_directory
@_passphrase
def server(names: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Issue a certificate to a server of these DNS names and addresses.

    NAME is what nodes dial, or give with --tls-server-SAN.

    Example: nray certs issue server scan.example.org 198.18.0.1 --out server
    """
    _issue("server", names, out=out, **options)


@issue.command(cls=Command, example="nray certs issue node nyc1 --bundle nyc1.nray")
@click.argument("name", metavar="NAME")
@_BUNDLE
@_SERVER_NAME
@_OUT
@_days("How long it lasts.", "30")
@_rsa("P-256")
@_REPLACE
@_directory
@_passphrase
def node(name: str, **options: Any) -> None:
    """Issue a certificate to a node; its NAME stands in every finding.

    \b
    Examples:
      nray certs issue node nyc1 --bundle nyc1.nray
      nray certs issue node nyc1 --bundle nyc1.nray --server-name localhost
    """
    _issue("node", (name,), **options)


def _issue(kind: Any, names: tuple[str, ...], **options: Any) -> None:
    from nray.api import certs as work

    interrupts.take_over()  # files are written

    _tell(
        work.issue(
            options["directory"],
            kind,
            names,
            _place(options),
            days=options["days"],
            rsa_bits=options["rsa_bits"] or 0,
            passphrase=work.passphrase(options["passphrase_file"]),
        )
    )


@certs.command(cls=Command, example="nray certs renew nyc1 --replace")
@click.argument("name", metavar="NAME")
@_REPLACE
@click.option("--revoke-old", is_flag=True, help="Revoke what it had before.")
@_BUNDLE
@_SERVER_NAME
@_OUT
@_days("How long it lasts.", "as the old one")
@_rsa("as the old one")
@_directory
@_passphrase
def renew(name: str, revoke_old: bool, **options: Any) -> None:
    """Issue a new certificate, with a new key, to what has one.

    It is for the same names, and goes to where the old one was written, unless --out or
    --bundle names another place. The old one stays good until its end.

    \b
    Examples:
      nray certs renew nyc1 --replace
      nray certs renew nyc1 --bundle nyc1-2.nray --revoke-old
    """
    from nray.api import certs as work

    interrupts.take_over()  # files are written

    _tell(
        work.renew(
            options["directory"],
            name,
            _place(options),
            days=options["days"],
            rsa_bits=options["rsa_bits"],
            revoke_old=revoke_old,
            passphrase=work.passphrase(options["passphrase_file"]),
        )
    )


@certs.command(cls=Command, example="nray certs revoke nyc1")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option(
    "--serial",
    "serials",
    multiple=True,
    metavar="HEX",
    help="Revoke the one of this serial number.",
)
@_directory
@_passphrase
def revoke(
    names: tuple[str, ...], serials: tuple[str, ...], directory: str, passphrase_file: str | None
) -> None:
    """Revoke all certificates of NAME, or one by its serial number.

    It signs the list of the revoked anew; the server must get that.

    \b
    Examples:
      nray certs revoke nyc1
      nray certs revoke --serial 5f1c09d2
    """
    from nray.api import certs as work

    interrupts.take_over()  # files are written

    if not names and not serials:
        raise click.UsageError("what is to be revoked? a NAME or --serial is missing")
    _tell(work.revoke(directory, names, serials, passphrase=work.passphrase(passphrase_file)))


@certs.command(cls=Command)
@_days("How long it is good.", "90")
@_directory
@_passphrase
def crl(days: int | None, directory: str, passphrase_file: str | None) -> None:
    """Sign the list of revoked certificates anew, before it runs out.

    Every other command that uses the authority does so too when half of its time is over.

    Example: nray certs crl
    """
    from nray.api import certs as work

    interrupts.take_over()  # files are written

    _tell(work.sign_revocations(directory, days=days, passphrase=work.passphrase(passphrase_file)))


@certs.command(name="list", cls=Command, short_help="Show what was issued, and how it stands.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@_directory
def list_(as_json: bool, directory: str) -> None:
    """Show what was issued: name, kind, serial number, end, and state.

    The state is valid, expires soon, expired, or revoked.

    Example: nray certs list --json | jq -r 'select(.state == "revoked").serial'
    """
    from nray.api import certs as work

    _tell(work.listing(directory, as_json=as_json))


@certs.command(
    cls=Command,
    short_help="Say whether certificates, keys and bundles are good.",
    example="nray certs check server.pem server-key.pem",
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--ca", metavar="FILE", help="The authority to judge by.")
@click.option("--crl", metavar="FILE", help="A list of the revoked to judge by.")
@click.option("--name", metavar="NAME", help="What nodes look for in a server's certificate.")
@click.option(
    "--as",
    "use",
    type=click.Choice(["server", "node"]),
    help="What it is to be good for. [default: what it says]",
)
@_directory
def check(
    files: tuple[str, ...],
    ca: str | None,
    crl: str | None,
    name: str | None,
    use: str | None,
    directory: str,
) -> int:
    """Say whether certificates, keys, bundles, authorities and lists of the
    revoked are good.

    They are judged as server and nodes would do it, by --ca, else by an
    authority that is among the files, else by the one in --dir; the same with
    --crl. The status is 1 if anything would be refused.

    \b
    Examples:
      nray certs check server.pem server-key.pem --name scan.example.org
      nray certs check nyc1.nray
    """
    from nray.api.check_certs import check as judge

    report = judge(files, authority=ca, crl=crl, directory=directory, name=name, use=use)
    for line in report.lines:
        click.echo(line)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    return 1 if report.refused else 0


def _place(options: dict[str, Any]) -> Any:
    from nray.api.certs import Place

    bundle, server_name = options.get("bundle"), options.get("server_name")
    if bundle and options["out"]:
        raise click.UsageError("--out and --bundle: one place is enough")
    return Place(options["out"] or "", bundle or "", server_name or "", options["replace"])


def _tell(told: Told) -> None:
    for warning in told.warnings:
        click.echo(f"warning: {warning}", err=True)
    for line in told.lines:
        click.echo(line)
