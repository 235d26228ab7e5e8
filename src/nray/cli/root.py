"""The root command, and how every command ends."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from nray import UserError, __version__
from nray.api.interrupts import EXIT_INTERRUPTED
from nray.cli import streams
from nray.cli.command import VERSION_MESSAGE, Group, NoArguments, hint_of, message_of

#: Command to one line of help: the help is shown without importing the commands.
COMMANDS = {
    "scan": "Scan from this machine, without a server.",
    "server": "Serve a scan to nodes.",
    "node": "Scan for a server.",
    "status": "Show how a scan stands that keeps its state.",
    "config": "Check or show a configuration file.",
    "certs": "Make, renew, revoke and check certificates.",
}

EXIT_USAGE = 2


class Commands(Group):
    """Subcommands by name, each from the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"nray.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands)
@click.version_option(__version__, "-V", "--version", prog_name="nray", message=VERSION_MESSAGE)
def nray() -> None:
    """A distributed port scanner: many vantage points, one honest result.

    \b
    Examples:
      nray scan -t 127.0.0.1 -p 1-1024
      nray server -c conf.yaml
      nray node -s scan.example.org --use-tls --tls-ca-cert ca.pem

    Exit status: 0 complete, 1 failed, 2 usage or configuration, 3 finished but
    not everything could be covered, 130 interrupted.
    """


def run(arguments: list[str], program: str) -> NoReturn:
    """Run a command line and end the process with its exit status."""
    streams.prepare()
    end(streams.finish(_status(arguments, program)))


def _status(arguments: list[str], program: str) -> int:
    try:
        status = _command(program).main(arguments, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        return _complain_of_usage(error)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except UserError as error:
        if _is_end_of_reading(error):
            return 0
        complain(error.message, error.hint)
        return error.exit_status
    except BrokenPipeError:
        return 0  # whoever read our output has seen enough
    return status if isinstance(status, int) else 0


def _command(program: str) -> click.Command:
    if program == "nray-node":
        from nray.cli.node import node

        return node
    return nray


def _complain_of_usage(error: click.ClickException) -> int:
    if isinstance(error, NoArguments) and error.ctx is not None:
        print(error.ctx.get_help(), file=sys.stderr)
    else:
        complain(message_of(error), hint_of(error))
    return EXIT_USAGE


def _is_end_of_reading(error: UserError) -> bool:
    """Whether it only says that whoever read our output has seen enough (``| head -1``)."""
    from nray.events.sink import SinkClosed

    return isinstance(error, SinkClosed)


def complain(message: str, hint: str) -> None:
    """Print an error for people: what is wrong, and on a line of its own what to do."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)


def end(status: int) -> NoReturn:
    """Leave at once: an interpreter that tidies up costs a short scan a tenth."""
    os._exit(status)
