"""The manual and the program say the same: commands, options, statuses, examples, links.

Run as a program it writes the tables of docs/commands.md anew.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_lab import parse
from nray.cli.node import node
from nray.cli.root import nray
from nray.cli.scan import check_usage
from nray.config.policy import parse_policy
from nray.config.reader import loads

ROOT = Path(__file__).parent.parent
COMMANDS = ROOT / "docs" / "commands.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

#: DESIGN.md; the root command's help and the manual must have the same.
STATUSES = ["0", "1", "2", "3", "130"]

#: What the arguments of commands are; click has no help for them.
ARGUMENTS = {
    "FILE": "The configuration file.",
    "STATE": "The ledger.",
    "NAME": "What it goes by.",
    "NAME...": "DNS names and addresses.",
    "[NAME...]": "What is to be revoked.",
    "FILE...": "Certificates, keys, bundles, authorities, lists of the revoked.",
}


def commands(group: click.Group = nray, path: str = "nray") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def table(command: click.Command) -> str:
    """The options of a command as a table, from what click knows of them."""
    rows = ["| option | default | what it does |", "| --- | --- | --- |"]
    for param in command.params:
        if isinstance(param, click.Argument):
            rows.append(f"| `{_called(param)}` | – | {ARGUMENTS[_called(param)]} |")
        elif isinstance(param, click.Option) and not param.hidden:
            rows.append(_row(param))
    return "\n".join(rows) + "\n"


def _called(argument: click.Argument) -> str:
    return argument.metavar or argument.name.upper()


def _row(option: click.Option) -> str:
    assert option.help, f"{option.opts} has no help"
    value = ""
    if not option.is_flag:
        value = f" {option.metavar or '|'.join(option.type.choices)}"  # type: ignore[attr-defined]
    names = ", ".join(f"`{name}{value}`" for name in sorted(option.opts, key=len))
    text, default = option.help, "–"
    if in_help := re.search(r" \[default: (.*)\]$", text):
        text, default = text[: in_help.start()], in_help[1]
    elif option.show_default:
        default = f"`{option.default}`"
    elif option.required:
        default = "required"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (names, default, text)) + " |"


def written(page: str) -> str:
    """The page with its tables as they should be."""
    for path, command in commands():
        begin = f"<!-- options of {path}: written by tests/test_docs.py -->\n"
        assert page.count(begin) == 1, f"docs/commands.md has no place for {path}"
        before, _, after = page.partition(begin)
        _, end, rest = after.partition("<!-- end -->")
        options = table(command) if command.params else ""
        page = f"{before}{begin}{options}{end}{rest}"
    return page


# ── commands and options ────────────────────────────────────────────────────────────────────


def test_the_manual_has_every_command_and_option() -> None:
    page = COMMANDS.read_text()
    assert written(page) == page, "run .venv/bin/python tests/test_docs.py"
    for path, _ in commands():
        assert f"\n## {path}\n" in page


def test_the_table_is_made_of_options() -> None:
    @click.command()
    @click.option("-a", "--all", "all_", default=3, show_default=True, metavar="N", help="So | so.")
    @click.option("--flag", is_flag=True, help="On.")
    def command() -> None: ...

    assert table(command).splitlines()[2:] == [
        "| `-a N`, `--all N` | `3` | So \\| so. |",
        "| `--flag` | – | On. |",
    ]


def test_the_manual_has_every_exit_status() -> None:
    rows = re.findall(r"^\| (\d+) \|", COMMANDS.read_text(), re.MULTILINE)
    assert rows == STATUSES
    assert nray.help is not None
    assert re.findall(r"\b(\d+) [a-z]", nray.help.partition("Exit status:")[2]) == STATUSES


# ── examples ────────────────────────────────────────────────────────────────────────────────


def command_lines(text: str) -> list[str]:
    """The lines of a text that call nray, continuation lines joined, without what is piped."""
    joined = re.sub(r" \\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        for part in line.strip().removeprefix("Example: ").removeprefix("$ ").split(" | "):
            if re.match(r"nray(-node)? ", part):
                found.append(part.strip())
    return found


def check(line: str) -> None:
    """The line parses; nothing is called. Raises click.UsageError if not."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "nray-node":
        node.make_context(program, arguments)
        return
    if arguments in (["--version"], ["COMMAND", "--help"]):
        return
    ctx = parse(*arguments)
    if ctx.info_name == "scan":
        check_usage(ctx.params)


def groups(group: click.Group = nray, path: str = "nray") -> Iterator[tuple[str, click.Command]]:
    """Every command that only has commands."""
    yield path, group
    for name in group.list_commands(click.Context(group)):
        below = group.get_command(click.Context(group), name)
        if isinstance(below, click.Group):
            yield from groups(below, f"{path} {name}")


@pytest.mark.parametrize("path", [*dict(groups()), *dict(commands())])
def test_every_help_has_an_example_that_parses(path: str) -> None:
    command = {**dict(groups()), **dict(commands())}[path]
    assert command.help is not None
    lines = command_lines(command.help)
    assert lines, f"{path} --help has no example"
    for line in lines:
        check(line)


def code(page: Path) -> str:
    return "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_of_the_pages_parse(page: Path) -> None:
    for line in command_lines(code(page)):
        check(line)


@pytest.mark.parametrize(
    "line",
    ["nray scan -t ::1", "nray sacn", "nray node --port x", "nray-node --bogus", "nray server"],
)
def test_a_wrong_example_would_be_seen(line: str) -> None:
    with pytest.raises(click.UsageError):
        check(line)


def test_lines_are_found() -> None:
    text = "$ echo x | nray scan -t - \\\n  -p 1 | jq .\nnray-node -p 1\nnrays\n  Example: nray x"
    assert command_lines(text) == ["nray scan -t - -p 1", "nray-node -p 1", "nray x"]
    assert len(command_lines(code(ROOT / "README.md"))) >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_of_the_pages_are_read(page: Path) -> None:
    # (those with references: tests/test_config_docs.py)
    read = parse_policy if page.name == "policy.md" else loads
    for example in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        if "!env" not in example:
            read(example)


def test_the_readme_begins_with_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text().split("```")[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()[1:]] == [
        "make demo",
        "make test",
    ]


# ── the recipes for certificates ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tool", ["cfssl", "openssl"])
def test_certificates_of_the_manual_are_good(tool: str, tmp_path: Path) -> None:
    """The page's commands as they stand, then each certificate judged as in a handshake."""
    import datetime
    import os
    import shutil

    from cryptography import x509

    from nray.pki.keys import load_identity, load_trust
    from nray.pki.revocation import load_revocations
    from nray.pki.verify import PeerRejected, peer_name, verify_node, verify_server

    if shutil.which(tool) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tool} is missing; in CI it must be there")
        pytest.skip(f"{tool} is not installed")
    page = (ROOT / "docs" / "tls.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    recipe, *revoking = [block for block in blocks if f"\n{tool} " in f"\n{block}"]
    subprocess.run(
        ["bash", "-ec", recipe], cwd=tmp_path, check=True, capture_output=True, timeout=120
    )
    pairs = [f"{stem}{end}" for stem in ("ca", "client", "server") for end in ("-key.pem", ".pem")]
    assert sorted(path.name for path in tmp_path.glob("*.pem")) == sorted(pairs)
    trust, now = load_trust(tmp_path / "ca.pem"), datetime.datetime.now(datetime.UTC)
    for stem in ("server", "client"):
        identity = load_identity(tmp_path / f"{stem}.pem", tmp_path / f"{stem}-key.pem")
        assert identity.warnings == ()
    server, client = (
        x509.load_pem_x509_certificate((tmp_path / f"{stem}.pem").read_bytes())
        for stem in ("server", "client")
    )
    verify_server(server, [], trust, peer_name("localhost"), now)
    verify_node(client, [], trust, now)
    for recipe in revoking:
        subprocess.run(
            ["bash", "-ec", recipe], cwd=tmp_path, check=True, capture_output=True, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        revocations = load_revocations(tmp_path / "revoked.pem", trust)
        verify_server(server, [], trust, peer_name("localhost"), now, revocations)
        with pytest.raises(PeerRejected, match="revoked"):
            verify_node(client, [], trust, now, revocations)
    assert len(revoking) == (tool == "openssl")


# ── links ───────────────────────────────────────────────────────────────────────────────────


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes addresses of them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: here\n[a](#a-title-here) [b](#b) [c](page.md) [d](no.md) [e](http://x)"
    )
    assert broken_links(page) == ["#b", "no.md"]


def test_every_page_can_be_reached() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme


if __name__ == "__main__":
    COMMANDS.write_text(written(COMMANDS.read_text()))
