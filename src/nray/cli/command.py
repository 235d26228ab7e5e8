"""What all commands have in common: help at 80 columns, and errors that say what to do.

A usage error is raised by click as an exception; `nray.cli.root` prints it in our own words, with
the hint that is made here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 80}

VERSION_MESSAGE = "%(prog)s %(version)s"


class Command(click.Command):
    """A command with a line to paste, shown where it was used wrongly."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)
        self.example = example


class Group(click.Group):
    """Commands by name; of a misspelt one the nearest is told."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", SETTINGS)
        super().__init__(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            raise NoArguments(ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            raise NoCommand(args[0], known, ctx)
        return super().resolve_command(ctx, args)


class NoCommand(click.UsageError):
    """A word that is no command."""

    def __init__(self, word: str, known: Iterable[str], ctx: click.Context) -> None:
        super().__init__(f"there is no command {word!r}", ctx)
        self.word = word
        self.known = list(known)


class NoArguments(click.UsageError):
    """A group without the command that it needs: the whole help is the best answer."""

    def __init__(self, ctx: click.Context) -> None:
        super().__init__("a command is missing", ctx)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number between two ends, whole unless told otherwise.

    Args:
        what: what it is, with its article: "a port".
        least, most: both included; ``most`` None is no end.
        whole: whether a fraction is refused.
    """

    name = "number"

    def __init__(
        self, what: str, least: float, most: float | None = None, *, whole: bool = True
    ) -> None:
        self.what = what
        self.least = least
        self.most = most
        self.whole = whole

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        """The number. Fails with what would be right."""
        if isinstance(value, int | float):
            return value
        try:
            number = int(value) if self.whole else float(value)
        except ValueError:
            number = None
        # A comparison with "not a number" is false, so nan is refused too; so is infinity.
        if number is None or not self.least <= number <= (self.most or 2**64):
            self.fail(f"{value!r} is not {self.what}: {self._right()}", param, ctx)
        return number

    def _right(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.most is None:
            return f"{kind} from {self.least}"
        return f"{kind} from {self.least} to {self.most}"


class Rate(Number):
    """The same, or the word ``auto``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or the word."""
        if isinstance(value, str) and value.casefold() == "auto":
            return "auto"
        return super().convert(value, param, ctx)

    def _right(self) -> str:
        return f"auto, or {super()._right()}"


def message_of(error: click.ClickException) -> str:
    """What is wrong, as a clause without a capital and a full stop."""
    if isinstance(error, click.NoSuchOption):
        return f"there is no option {error.option_name}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        text = f"{_option(error.param)}: {error.message}"
    elif isinstance(error, click.BadParameter) and error.param_hint:
        text = f"{error.param_hint}: {error.message}"
    else:
        text = error.format_message()
    if isinstance(error, click.MissingParameter) and error.param is not None:
        text = f"{_option(error.param)} is missing"
    words = text.rstrip(".")
    if words.startswith(("Got ", "Option ", "Missing ")):
        words = words[0].lower() + words[1:]
    return words


def hint_of(error: click.ClickException) -> str:
    """What would be right: the nearest right word, or a line to paste."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return ""
    more = f"{ctx.command_path} --help"
    if isinstance(error, NoCommand):
        near = nearest(error.word, error.known)
        return f"did you mean {near!r}?" if near else f"{more} lists the commands"
    if isinstance(error, click.NoSuchOption):
        near = nearest(error.option_name, _options(ctx.command))
        return f"did you mean {near}?" if near else f"{more} lists the options"
    if isinstance(error, click.BadParameter | click.BadOptionUsage) and not isinstance(
        error, click.MissingParameter
    ):
        return ""  # the message itself says what would be right
    if isinstance(ctx.command, Command) and ctx.command.example:
        return f"for example: {ctx.command.example}\n  {more} tells more"
    return f"{more} tells more"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was most likely meant; empty if none is near."""
    from difflib import get_close_matches

    by_folded = {each.casefold(): each for each in known}
    near = get_close_matches(word.casefold(), by_folded, 1)
    return by_folded[near[0]] if near else ""


def _options(command: click.Command) -> list[str]:
    return [
        name
        for param in command.params
        if isinstance(param, click.Option) and not param.hidden
        for name in param.opts
        if name.startswith("--")
    ] + ["--help"]


def _option(param: click.Parameter) -> str:
    """As it is written: ``--port``; an argument as help shows it."""
    if isinstance(param, click.Option):
        return "/".join(param.opts)
    return param.make_metavar(click.Context(click.Command("nray")))
