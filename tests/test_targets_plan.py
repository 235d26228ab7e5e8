"""Plans: exact totals, exclusions, refusals, seeds."""

from __future__ import annotations

import io
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray import UserError
from nray.targets import reserved
from nray.targets.networks import parse_targets
from nray.targets.plan import Plan, plan
from nray.targets.segment import Segment, segment_key


def only(made: Plan) -> Segment:
    (segment,) = made.segments
    return segment


def lines(made: Plan) -> list[str]:
    return [
        line
        for segment in made.segments
        for line in segment.listing(0, segment.probes).decode().splitlines()
    ]


def test_the_whole_of_a_small_plan() -> None:
    made = plan("10.0.0.0/30,a.example", tcp="80", udp=53, exclude="10.0.0.1", seed=1)
    assert (made.hosts, made.ports, made.probes, made.excluded) == (4, 2, 8, 1)
    assert made.seed == 1
    assert sorted(lines(made)) == sorted(
        f"{host} {port}"
        for host in ("10.0.0.0", "10.0.0.2", "10.0.0.3", "a.example")
        for port in ("80/tcp", "53/udp")
    )
    networks, names = made.segments
    assert (networks.id, networks.hosts, networks.names) == (0, 3, ())
    assert (names.id, names.hosts, names.names) == (1, 1, ("a.example",))
    assert networks.key != names.key
    for segment in made.segments:
        assert segment.ports == ((6, 80), (17, 53))
        assert segment.exclusions.covers(4, int(ipaddress.ip_address("10.0.0.1")))
        assert segment.space is segment.space


def test_udp_ports_may_be_cut_to_those_with_a_payload() -> None:
    made = plan("10.0.0.0/30", tcp="1", udp="52-54", udp_only={53: b"x"}, seed=1)
    assert only(made).ports == ((6, 1), (17, 53))
    assert made.probes == 8
    with pytest.raises(UserError):
        plan("10.0.0.0/30", udp="1", udp_only={53})


small = st.builds(
    lambda base, last, prefix: f"10.0.{base}.{last}/{prefix}",
    st.integers(0, 1),
    st.integers(0, 255),
    st.integers(26, 32),
)
small6 = st.builds(
    lambda last, prefix: f"2001:db8::{last:x}/{prefix}", st.integers(0, 255), st.integers(123, 128)
)
name = st.sampled_from(["a.example", "B.example", "b.EXAMPLE", "c.example"])
things = st.lists(st.one_of(small, small6, name), max_size=6)


def naive(texts: list[str]) -> set[str]:
    found: set[str] = set()
    for text in texts:
        if "/" in text:
            found.update(str(address) for address in ipaddress.ip_network(text, strict=False))
        else:
            found.add(text.lower())
    return found


@given(things, things, st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**64))
def test_totals_and_listing_are_those_of_a_naive_enumeration(
    targets: list[str], away: list[str], ports: list[int], seed: int
) -> None:
    wanted = naive(targets) - naive(away)
    if not wanted:
        with pytest.raises(UserError, match="nothing to scan"):
            plan(targets, tcp=ports, exclude=away, seed=seed)
        return
    made = plan(targets, tcp=ports, exclude=away, seed=seed)
    assert made.hosts == len(wanted)
    assert made.ports == len(set(ports))
    assert made.probes == made.hosts * made.ports
    assert made.probes == sum(each.space.total for each in made.segments)
    assert made.excluded == len(naive(targets) & naive(away))
    listed = [line.lower() for line in lines(made)]
    assert len(listed) == made.probes
    assert set(listed) == {f"{host} {port}/tcp" for host in wanted for port in ports}


@given(things, things, st.data())
def test_the_order_of_writing_changes_nothing_but_the_names_places(
    targets: list[str], away: list[str], data: st.DataObject
) -> None:
    networks = [text for text in targets if "/" in text] or ["10.0.0.0/24"]
    away = [text for text in away if "/" not in text or not text.startswith("10.")]
    one = plan([*networks, "10.0.9.9"], tcp="80,22", exclude=away, seed=5)
    shuffled = data.draw(st.permutations([*networks, "10.0.9.9"]))
    other = plan(shuffled, tcp=["22", 80], exclude=away[::-1], seed=5)
    assert lines(one) == lines(other)


def test_exclusions_win_by_name_whatever_the_case() -> None:
    made = plan("A.example,b.example", tcp=1, exclude="a.EXAMPLE.,C.example")
    assert only(made).names == ("b.example",)
    assert only(made).excluded_names == ("a.example", "c.example")
    assert made.excluded == 1


def test_exclusions_from_files_and_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "away"
    path.write_text("10.0.0.0/25 # half\n")
    made = plan(
        target_files=["-"],
        tcp=1,
        exclude="10.0.0.128",
        exclude_files=[str(path)],
        stdin=io.BytesIO(b"10.0.0.0/24\n"),
    )
    assert (made.hosts, made.excluded) == (127, 129)


@pytest.mark.parametrize("strict", [True, False])
def test_an_unreadable_exclusion_is_always_an_error(tmp_path: Path, strict: bool) -> None:
    path = tmp_path / "away"
    path.write_text("10.0.0.1\n10.0.0.0/240\n")
    with pytest.raises(UserError, match="away:2: "):
        plan("10.0.0.0/24", tcp=1, exclude_files=[str(path)], strict=strict)
    with pytest.raises(UserError, match="exclusions: "):
        plan("10.0.0.0/24", tcp=1, exclude=["http://a/"], strict=strict)


def test_lenient_targets_and_ports_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "targets"
    path.write_text("10.0.0.1\nhttp://a.example/\n")
    made = plan(
        "10.0.0.2,x:y", target_files=[str(path)], tcp=["80", "http"], udp=["bad"], strict=False
    )
    assert (made.hosts, made.ports) == (2, 1)
    assert [text.split(": ")[0] for text in made.warnings] == [
        "targets",
        f"{path}:2",
        "TCP ports",
        "UDP ports",
    ]
    with pytest.raises(UserError, match="targets:2: "):
        plan(target_files=[str(path)], tcp=80)


# ── seed ────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_is_the_same_order_and_another_is_not() -> None:
    one, again, other = (lines(plan("10.0.0.0/24", tcp=80, seed=seed)) for seed in (7, 7, 8))
    assert one == again
    assert one != other
    assert sorted(one) == sorted(other)


def test_an_order_that_must_never_change() -> None:
    # a ledger of an older nray is resumed by a newer one: these are on disk
    assert segment_key(1, 0).hex().startswith("0ae12771454621c32e60b61b21b19e7e")
    last = [line.split()[0][-1] for line in lines(plan("10.0.0.0/29", tcp=80, seed=1))]
    assert "".join(last) == "71325640"


def test_segments_have_orders_of_their_own() -> None:
    assert len({segment_key(seed, number) for seed in (1, 11) for number in (1, 11, 111)}) == 6


def test_a_seed_is_drawn_where_none_is_given() -> None:
    drawn = {plan("10.0.0.1", tcp=1).seed for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**63 for seed in drawn)


# ── refusals ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("targets", "tcp", "exclude", "cause"),
    [
        ([], "80", [], "no targets"),
        (["10.0.0.1"], [], [], "no ports"),
        (["10.0.0.0/24", "a.example"], "80", ["10.0.0.0/8", "A.example"], "cover all 257 hosts"),
    ],
)
def test_nothing_to_scan_says_why(
    targets: list[str], tcp: str | list[str], exclude: list[str], cause: str
) -> None:
    with pytest.raises(UserError, match=f"nothing to scan: .*{cause}") as caught:
        plan(targets, tcp=tcp, exclude=exclude)
    assert caught.value.hint


def test_nothing_readable_shows_the_first_thing_wrong() -> None:
    with pytest.raises(UserError, match="no target could be read") as caught:
        plan("http://a.example/", tcp=80, strict=False)
    assert "http://a.example/" in caught.value.hint


def test_too_many_probes_are_refused_with_what_would_fit() -> None:
    with pytest.raises(UserError) as caught:
        plan("2001:db8::/64", tcp="1-100", permission=True)
    assert str(2**64 * 100) in caught.value.message
    assert str(2**63) in caught.value.message
    assert str(2**63 // 100) in caught.value.hint
    fits = plan("2001:db8::/72", tcp="1-100")
    assert "/72" in caught.value.hint
    assert fits.probes == 2**56 * 100
    with pytest.raises(UserError, match="more than"):
        plan("2001:db8::/71", tcp="1-100")
    assert plan("2001:db8::/65", tcp=1).probes == 2**63
    with pytest.raises(UserError):
        plan("2001:db8::/65,10.0.0.1", tcp=1)
    # exclusions are subtracted first
    assert plan("2001:db8::/64", tcp=1, exclude="2001:db8::/65").probes == 2**63


INTERNET = ["0.0.0.0/0", "10.0.0.0/7", "8.0.0.0/8,9.0.0.0", "1.0.0.0-2.0.0.0", "11-12.*.*.*"]


@pytest.mark.parametrize("targets", INTERNET)
def test_an_internet_needs_permission_or_exclusions(targets: str) -> None:
    with pytest.raises(UserError, match="scan of the Internet") as caught:
        plan(targets, tcp=80)
    assert "exclusions" in caught.value.hint
    assert plan(targets, tcp=80, permission=True).probes
    assert plan(targets, tcp=80, listing=True).probes
    assert plan(targets, tcp=80, exclude="192.0.2.1").probes
    assert plan(targets, tcp=80, exclude="opted-out.example").probes


@pytest.mark.parametrize(
    "targets",
    [
        "8.0.0.0/8",
        "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16",
        "127.0.0.0/8,8.0.0.0/9",
        "240.0.0.0/4",
    ],
)
def test_a_large_network_is_no_internet(targets: str) -> None:
    made = plan(targets, tcp=80)
    assert made.excluded == 0
    assert made.warnings == ()


def test_reserved_addresses_leave_an_internet() -> None:
    made = plan("0.0.0.0/0", tcp="1-100", listing=True)
    blocks = [ipaddress.ip_network(text) for text in reserved.BLOCKS4]
    gone = sum(network.num_addresses for network in ipaddress.collapse_addresses(blocks))  # type: ignore[type-var]
    assert made.hosts == 2**32 - gone
    assert made.excluded == gone
    assert made.probes == made.hosts * 100
    assert str(gone) in made.warnings[0]
    everything = plan("0.0.0.0/0", tcp="1-100", listing=True, include_reserved=True)
    assert (everything.hosts, everything.excluded) == (2**32, 0)
    # nodes are told, too: a name may resolve to 10.0.0.1
    assert only(made).exclusions.covers(4, 10 << 24)
    assert not only(everything).exclusions.covers(4, 10 << 24)


def test_an_exclusion_within_a_reserved_block_counts_once() -> None:
    plain = plan("0.0.0.0/0", tcp=1, listing=True)
    made = plan("0.0.0.0/0", tcp=1, exclude="10.0.0.0/9,8.8.8.8", listing=True)
    assert made.excluded == plain.excluded + 1


def test_only_reserved_addresses_left_says_so() -> None:
    with pytest.raises(UserError, match="reserved") as caught:
        plan("10.0.0.0/7", tcp=1, exclude="11.0.0.0/8")
    assert "include" in caught.value.hint
    assert plan("10.0.0.0/7", tcp=1, exclude="11.0.0.0/8", include_reserved=True).hosts == 2**24


def test_reserved_blocks_are_networks_as_registered() -> None:
    for blocks in (reserved.BLOCKS4, reserved.BLOCKS6):
        for text in blocks:
            ipaddress.ip_network(text)  # raises where host bits are set
    # Python's own copy of the registry agrees, but for two: multicast is no part of that
    # registry, and the 6to4 relays are withdrawn
    known = [ipaddress.IPv4Address(first) for first, _ in reserved.reserved4()]
    assert [str(address) for address in known if address.is_global] == ["192.88.99.0", "224.0.0.0"]


@pytest.mark.parametrize(
    ("targets", "wide"),
    [
        ("2a00::/32", False),
        ("2a00::/31", True),
        ("2a00::-2a00:0:0:ffff:ffff:ffff:ffff:ffff", False),
        ("2a00::/32,2a01::1", True),
        ("2001:db8::/32,fd00::/8", False),
        ("::/0", True),
        ("1.0.0.0/8", False),
        ("1.0.0.0/8,3.3.3.3", True),
    ],
)
def test_what_is_wide(targets: str, wide: bool) -> None:
    read = parse_targets(targets)
    assert reserved.is_wide(read.ranges4, read.ranges6) == wide


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=12), st.booleans())
def test_any_text_is_a_plan_or_a_user_error(
    targets: str, away: str, ports: str, strict: bool
) -> None:
    try:
        plan(targets, tcp=ports, exclude=away, strict=strict, stdin=io.BytesIO(b""))
    except UserError:
        pass
