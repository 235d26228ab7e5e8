"""What a node says of its machine: always fit to be sent."""

from __future__ import annotations

import os
import platform
import sys

import pytest

from fakes import registration
from nray.node import machine
from nray.wire.rules import trouble_in


def test_it_is_fit_for_the_wire_as_it_is():
    said = registration(machine_id=machine.machine_id(), environment=machine.environment())
    assert trouble_in(said) is None
    assert said.environment.pid == os.getpid()
    assert said.environment.os.startswith("Linux")


def test_texts_of_any_length_and_kind_are_made_fit(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "h" * 5000)
    monkeypatch.setattr(sys, "argv", ["/x/" + "\udcff" * 300])
    monkeypatch.setattr(machine.getpass, "getuser", lambda: "\ud800")
    assert trouble_in(registration(environment=machine.environment())) is None
    assert len(machine.default_name()) == 32


@pytest.mark.parametrize("error", [KeyError("no such user"), OSError("no such user")])
def test_a_user_without_a_name_is_a_number(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(machine.getpass, "getuser", fail)
    assert machine.environment().username == str(os.getuid())


def test_the_machines_id_is_a_hash_of_the_file_and_steady(monkeypatch, tmp_path):
    file = tmp_path / "machine-id"
    monkeypatch.setattr(machine, "_ID_FILES", (str(file),))
    file.write_text("0123456789abcdef0123456789abcdef\n")
    first = machine.machine_id()
    assert first == machine.machine_id()
    assert "0123456789abcdef" not in first
    file.write_text("another\n")
    assert machine.machine_id() != first


@pytest.mark.parametrize("content", [None, b"", b"  \n", b"uninitialized\n"])
def test_without_an_id_the_next_file_counts_and_then_the_host(monkeypatch, tmp_path, content):
    first, second = tmp_path / "one", tmp_path / "two"
    if content is not None:
        first.write_bytes(content)
    monkeypatch.setattr(machine, "_ID_FILES", (str(first), str(second)))
    of_host = machine.machine_id()
    assert len(of_host) == 32
    second.write_text("abc")
    assert machine.machine_id() != of_host


def test_bytes_that_are_no_text_do_no_harm(monkeypatch, tmp_path):
    file = tmp_path / "machine-id"
    file.write_bytes(b"\xff\xfe\n")
    monkeypatch.setattr(machine, "_ID_FILES", (str(file),))
    assert len(machine.machine_id()) == 32


def test_processors_are_those_this_process_may_use():
    assert machine.processors() == len(os.sched_getaffinity(0))
