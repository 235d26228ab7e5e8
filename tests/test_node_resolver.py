"""Look-ups, with a resolver made up; the system's own is asked for localhost alone."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import trio
import trio.testing

from nray.node import resolver as module
from nray.node.resolver import Resolver, system_lookup

ONE = bytes([198, 18, 0, 1])


class Book:
    """A look-up that answers from a table, counts, and can be held."""

    def __init__(self, table=None, error=None):
        self.table = table or {}
        self.asked = []
        self.at_once = self.most = 0
        self.error = error
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    def __call__(self, name):
        with self.lock:
            self.asked.append(name)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            self.gate.wait(5)
            time.sleep(0.002)  # long enough for others to come, if they may
            if self.error is not None:
                raise self.error
            if name not in self.table:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return self.table[name]
        finally:
            with self.lock:
                self.at_once -= 1


def test_a_name_is_asked_for_once_whatever_its_case_and_however_many_want_it():
    book = Book({"a.example": [ONE]})

    async def main():
        resolver = Resolver(book)
        found = await resolver.all({"a.example", "A.Example", "a.example."})
        assert found == {"a.example": [ONE], "A.Example": [ONE], "a.example.": [ONE]}
        assert await resolver.addresses("A.EXAMPLE") == [ONE]

    trio.run(main)
    assert book.asked == ["a.example"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_a_name_without_an_address_has_none_and_the_reason_is_kept(error, words):
    book = Book(error=error)

    async def main():
        resolver = Resolver(book)
        assert await resolver.addresses("gone.example") == []
        assert words in resolver.failures["gone.example"]
        assert await resolver.addresses("gone.example") == []

    trio.run(main)
    assert book.asked == ["gone.example"]


def test_so_many_at_once_and_no_more(monkeypatch):
    monkeypatch.setattr(module, "LOOKUPS_MAX", 3)
    book = Book({f"n{n}.example": [ONE] for n in range(20)})

    async def main():
        assert len(await Resolver(book).all(set(book.table))) == 20

    trio.run(main)
    assert book.most <= 3


def test_a_look_up_that_hangs_is_given_up_and_others_get_their_full_time(monkeypatch):
    """A name that has to wait for its turn is not told to have had no answer."""
    monkeypatch.setattr(module, "LOOKUPS_MAX", 1)
    monkeypatch.setattr(module, "LOOKUP_S", 0.05)
    held = threading.Event()

    def lookup(name):
        if name == "hangs.example":
            held.wait(5)
        return [ONE]

    async def main():
        resolver = Resolver(lookup)
        names = ["hangs.example", *(f"n{n}.example" for n in range(5))]
        found = {}

        async def one(name):
            found[name] = await resolver.addresses(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, names[0])
            await trio.testing.wait_all_tasks_blocked(0.01)
            for name in names[1:]:
                nursery.start_soon(one, name)
        assert found.pop("hangs.example") == []
        assert "no answer within" in resolver.failures["hangs.example"]
        assert all(addresses == [ONE] for addresses in found.values())

    try:
        trio.run(main)
    finally:
        held.set()


def test_cancelled_it_can_be_asked_again():
    book = Book({"a.example": [ONE]})
    book.gate.clear()

    async def main():
        resolver = Resolver(book)
        with trio.move_on_after(0.02) as scope:
            await resolver.addresses("a.example")
        assert scope.cancelled_caught
        book.gate.set()
        assert await resolver.addresses("a.example") == [ONE]

    trio.run(main)


def test_if_the_one_that_asks_is_cancelled_those_that_wait_ask_themselves():
    book = Book({"a.example": [ONE]})
    book.gate.clear()

    async def main():
        resolver = Resolver(book)
        found = []

        async def patient():
            found.append(await resolver.addresses("a.example"))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as hasty:
                    hasty.start_soon(resolver.addresses, "a.example")
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    nursery.start_soon(patient)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    scope.cancel()
            book.gate.set()
        assert found == [[ONE]]

    trio.run(main)


def test_localhost_is_this_machine():
    found = system_lookup("localhost")
    assert found
    assert set(found) <= {bytes([127, 0, 0, 1]), bytes(15) + b"\1"}


# ── names that are excluded ─────────────────────────────────────────────────────────────────


def ask_exclusions(lookup, names=frozenset({"away.example"})):
    async def main():
        return await Resolver(lookup).exclusions(set(names))

    return trio.run(main)


def test_an_excluded_name_that_does_not_exist_excludes_nothing():
    assert ask_exclusions(Book({"away.example": [ONE]}), {"away.example", "no.example"}) == {
        "away.example": [ONE],
        "no.example": [],
    }


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM])
def test_an_excluded_name_that_cannot_be_looked_up_stops_the_scan(number, monkeypatch):
    monkeypatch.setattr(module, "EXCLUSION_PAUSE_S", 0.0)
    book = Book(error=socket.gaierror(number, "try again"))
    with pytest.raises(BaseExceptionGroup) as raised:
        ask_exclusions(book)
    (error,) = raised.value.exceptions
    assert isinstance(error, module.ExclusionUnknown)
    assert "away.example" in error.message
    assert "exclusions win" in error.hint
    assert len(book.asked) == module.EXCLUSION_TRIES


def test_an_excluded_name_is_tried_again(monkeypatch):
    monkeypatch.setattr(module, "EXCLUSION_PAUSE_S", 0.0)
    answers = [socket.gaierror(socket.EAI_AGAIN, "try again"), [ONE]]

    def lookup(name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert ask_exclusions(lookup) == {"away.example": [ONE]}


def test_names_by_the_thousand_are_looked_up_by_few_tasks():
    """A server may list as many as it likes; a task for each would fill the node's memory."""
    names = {f"name-{number}.example" for number in range(300)}
    some = set(sorted(names)[:40])
    book = Book({name: [ONE] for name in names})
    book.gate.clear()
    most = 0

    async def watch():
        nonlocal most
        await trio.testing.wait_all_tasks_blocked(0.05)
        most = trio.lowlevel.current_statistics().tasks_living
        book.gate.set()

    async def main():
        resolver = Resolver(book)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            assert set(await resolver.all(names)) == names
        assert set(await resolver.exclusions(some)) == some

    trio.run(main)
    assert module.LOOKUPS_MAX <= most < module.LOOKUPS_MAX + 20
