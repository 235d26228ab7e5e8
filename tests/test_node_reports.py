"""Reports kept until they are acknowledged: against a server's end of the wire's rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import counts_of, registration
from nray.node.reports import UNACKNOWLEDGED_MAX, ReportBook
from nray.node.supervisor import Outcome
from nray.wire.messages import PROTOCOL_VERSION, Ack, Counts, Registered, Settings, Welcome
from nray.wire.states import ServerEnd


def outcome(lease, *, done=True, hits=b""):
    return Outcome(lease, hits, done, counts_of(3) if done else (), {"x": 1})


def connection():
    """A server's end with a node registered, to judge what the book sends."""
    end = ServerEnd()
    end.send(Welcome(PROTOCOL_VERSION, "x"))
    end.receive(registration())
    end.send(Registered("node-1", 0, 0, 5.0, Settings()))
    return end


def test_counts_and_errors_go_with_the_end_of_a_slice_only():
    book = ReportBook()
    part = book.add(outcome(1, done=False))
    last = book.add(outcome(1))
    assert (part.report, part.counts, part.errors) == (1, Counts(), {})
    assert (last.report, last.counts, last.errors) == (2, Counts(0, 3), {"x": 1})


def test_each_is_sent_once_on_a_connection_and_again_on_the_next_until_acknowledged():
    book = ReportBook()
    one, two = book.add(outcome(1)), book.add(outcome(2))
    assert book.unsent() == [one, two]
    assert book.unsent() == []
    book.acknowledge(1)
    three = book.add(outcome(3))
    assert book.unsent() == [three]
    book.reconnected()
    assert book.unsent() == [two, three]
    assert book.leases_done == {2, 3}
    book.acknowledge(3)
    assert book.empty
    book.reconnected()
    assert book.unsent() == []
    assert book.add(outcome(4)).report == 4
    assert [each.report for each in book.unsent()] == [4]


def test_it_is_full_at_its_bound_and_has_room_again():
    book = ReportBook()
    for lease in range(UNACKNOWLEDGED_MAX):
        assert not book.full
        book.add(outcome(lease + 1))
    assert book.full
    book.acknowledge(1)
    assert not book.full


def test_an_old_acknowledgement_changes_nothing():
    book = ReportBook()
    for lease in (1, 2):
        book.add(outcome(lease))
    book.acknowledge(1)
    book.acknowledge(1)
    book.acknowledge(0)
    assert [each.report for each in book.unsent()] == [2]


@given(st.lists(st.sampled_from(["add", "send", "lose", "ack"]), max_size=80), st.data())
@settings(deadline=None)
def test_whatever_is_lost_the_server_gets_each_report_in_order_and_no_rule_is_broken(steps, data):
    """The server's end judges every report; what is on a line when it breaks never arrives."""
    book, end = ReportBook(), connection()
    added = received = 0
    way = []

    def arrive(count):
        nonlocal received
        for report in way[:count]:
            end.receive(report)  # PeerFault if numbers have gaps
            received = max(received, report.report)
        del way[:count]

    for step in steps:
        match step:
            case "add":
                added += 1
                book.add(outcome(added))
            case "send":
                way += book.unsent()
            case "lose":
                arrive(data.draw(st.integers(0, len(way))))
                way.clear()
                end = connection()
                book.reconnected()
            case "ack":
                arrive(data.draw(st.integers(0, len(way))))
                if end.reported:
                    end.send(Ack(end.reported))
                    book.acknowledge(end.reported)
    book.reconnected()
    end = connection()
    way = book.unsent()
    arrive(len(way))
    assert received == added
