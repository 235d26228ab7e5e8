"""The root command, and how every command ends."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from nray import UserError, __version__

#: Command to (module, one line of help): help is shown without importing the commands.
COMMANDS = {
    "scan": "Scan from this machine, without a server.",
    "server": "Serve a scan to nodes.",
    "node": "Scan for a server.",
    "config": "Check or show a configuration file.",
}


class Commands(click.Group):
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="nray")
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


def run(arguments: list[str], program: str = "nray") -> NoReturn:
    """Run a command line and end the process with its exit status."""
    try:
        status = nray.main(arguments, prog_name=program.split("-")[0], standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.exceptions.Abort:
        status = 130
    except UserError as error:
        status = error.exit_status
        if _is_end_of_reading(error):
            status = 0
        else:
            complain(error)
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 0
    end(status if isinstance(status, int) else 0)


def _is_end_of_reading(error: UserError) -> bool:
    """Whether it only says that whoever read our output has seen enough (``| head -1``)."""
    from nray.events.sink import SinkClosed

    return isinstance(error, SinkClosed)


def complain(error: UserError) -> None:
    """Print an error for people: what is wrong, and on a line of its own what to do."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)


def end(status: int) -> NoReturn:
    """Flush and leave at once: an interpreter that tidies up costs a short scan a tenth."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(status)
