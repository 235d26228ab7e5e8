"""What becomes of results and words: closed streams, full disks, readers that leave, files."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_lab import listening, own_address, shell

ADDRESS = own_address(1)
SCAN = f"nray scan -t {ADDRESS} -p 21000-21020"


@pytest.fixture(scope="module")
def ports() -> Iterator[set[int]]:
    with listening(ADDRESS, 3, high=21020) as found:
        yield found


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("nray --version >&-", 1, "error: cannot write to standard output: Bad file descriptor\n"),
        ("nray scan -h >/dev/full", 1, "error: cannot write to standard output: No space left"),
        ("nray scan -t ::1 -p 1 --list --count >/dev/full", 1, "error: cannot write to standard"),
        ("nray scan -t ::1 -p 1 --list >/dev/full", 1, "error: cannot write the list: No space"),
        ("nray scan -t ::1 -p 1 --list >&-", 1, "error: cannot write the list: Bad file"),
        ("nray scan -t ::1 -p 1 >&-", 2, "error: standard output is closed, and results go there"),
        ("nray scan --target-file - -p 1 <&-", 2, "cannot read standard input: it is closed"),
        ("nray scan --target-file - -p 1 </dev/null", 2, "error: nothing to scan: no targets"),
        ("nray", 2, "Usage: nray "),
        ("nray-node --bogus", 2, "error: there is no option --bogus\n  nray-node --help lists"),
        ("nray --help 2>&-", 0, ""),
        ("nray scna 2>&-", 2, ""),
        ("nray scna 2>/dev/full", 2, ""),
        ("nray --help | true", 0, ""),
        ("set -o pipefail; nray scan -t 198.18.0.0/15 -p all --list | head -1", 0, ""),
    ],
)
def test_streams(script: str, status: int, words: str, tmp_path: Path) -> None:
    done = shell(script, tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert words in done.stderr
    assert bool(done.stderr) == bool(words)


def test_no_result_lands_in_a_socket(tmp_path: Path, ports: set[int]) -> None:
    """With standard error closed, the next descriptor would be number 2."""
    done = shell(f"{SCAN} 2>&-", tmp_path)
    assert done.returncode == 0
    assert {json.loads(line)["result"]["port"] for line in done.stdout.splitlines()} == ports


def test_words_may_be_lost_and_results_not(tmp_path: Path, ports: set[int]) -> None:
    done = shell(f"{SCAN} 2>/dev/full", tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, len(ports))


@pytest.mark.parametrize("where", [">/dev/full", "-o /dev/full"])
def test_a_full_disk(where: str, tmp_path: Path, ports: set[int]) -> None:
    done = shell(f"{SCAN} {where}", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "failed: No space left on device" in done.stderr


def test_a_reader_that_leaves(tmp_path: Path, ports: set[int]) -> None:
    done = shell(f"set -o pipefail; {SCAN},1-20000 --show closed | head -1", tmp_path)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert done.stderr == ""


def test_a_file_is_written_beside_and_never_over(tmp_path: Path, ports: set[int]) -> None:
    done = shell(f"{SCAN} -o out.json", tmp_path)
    written = (tmp_path / "out.json").read_text()
    assert (done.returncode, done.stdout) == (0, written)
    assert {json.loads(line)["result"]["port"] for line in written.splitlines()} == ports
    again = shell(f"{SCAN} -o out.json", tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        "error: json-file out.json: the file exists already\n  move it away, or name another file\n"
    )
    assert (tmp_path / "out.json").read_text() == written
    nowhere = shell(f"{SCAN} -o no/out.json", tmp_path)
    assert nowhere.returncode == 2
    assert "its directory does not exist" in nowhere.stderr


def test_nothing_is_sent_before_the_outputs_are_good(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        listener.listen()
        listener.settimeout(0.1)
        port = listener.getsockname()[1]
        for more in ("-o no/out.json", "-o /", ">&-"):
            done = shell(f"nray scan -t {ADDRESS} -p {port} {more}", tmp_path)
            assert done.returncode == 2
            with pytest.raises(TimeoutError):
                listener.accept()


def test_targets_from_a_pipe(tmp_path: Path, ports: set[int]) -> None:
    for flag in ("--target-file", "-t"):
        done = shell(f"echo {ADDRESS} | nray scan {flag} - -p 21000-21020", tmp_path)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, len(ports))


def test_the_list(tmp_path: Path) -> None:
    done = shell("nray scan -t 198.18.0.0/30 -p U:53,T:80-81 --exclude 198.18.0.3 --list", tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, len(set(lines))) == (0, "", 9)
    assert all(line.split()[1] in ("53/udp", "80/tcp", "81/tcp") for line in lines)
    done = shell("nray scan -t 198.18.0.0/30 -p 1-2 --exclude 198.18.0.3 --list --count", tmp_path)
    assert done.stdout == "hosts 3\nports 2\nprobes 6\nexcluded 1\n"


@pytest.mark.parametrize("program", ["nray", "nray-node"])
def test_version(program: str, tmp_path: Path) -> None:
    from nray import __version__

    done = shell(f"{program} --version", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nray {__version__}\n", "")


def test_the_summary(tmp_path: Path, ports: set[int]) -> None:
    done = shell(SCAN, tmp_path)
    first = done.stderr.splitlines()[0]
    assert first.startswith("21 probes in ")
    assert first.endswith(f": {len(ports)} open, {21 - len(ports)} closed")
    assert shell(f"{SCAN} -q", tmp_path).stderr == ""
    assert "debug: seed " in shell(f"{SCAN} --debug", tmp_path).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("127.0.0.1\n")
    secret.chmod(0)
    # Root without the capability to read everything is still root by name.
    drop = "setpriv --bounding-set -dac_override,-dac_read_search --inh-caps -all"
    done = shell(f"{drop} nray scan --target-file secret -p 1", tmp_path)
    assert (done.returncode, "Permission denied" in done.stderr) == (2, True), done.stderr
