"""A node's policy: reading its file, what it allows, and that the core keeps to it."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_lab import Drive, bucket, exclusions, space, tcp, udp
from nray import UserError, _core
from nray.api.policy import policy_of, read_policy
from nray.cli.root import _status
from nray.config.policy import PolicyFile, parse_policy
from nray.config.schema import fields
from nray.node.orders import configure
from nray.node.policy import Policy
from nray.targets.plan import plan
from nray.targets.ports import TCP, UDP
from nray.wire.messages import Settings
from nray.worker.main import _policy

PAGE = (Path(__file__).parent.parent / "docs" / "policy.md").read_text()


def read(text: str) -> Policy:
    return policy_of(parse_policy(text, "p.yaml"), "p.yaml")


def core(policy: Policy) -> _core.Policy:
    """As a worker makes it of what it is told."""
    made = _policy(configure(Settings(), 0, 1, policy.order()).policy)
    assert made is not None
    return made


def allows(policy: Policy, address: str, port: int = 80, protocol: int = TCP) -> bool:
    parsed = ipaddress.ip_address(address)
    return not core(policy).refuses(parsed.version, int(parsed), protocol, port)


# ── the file ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "p.yaml: networks: missing"),
        ("# nothing\n", "p.yaml: networks: missing"),
        ("~", "p.yaml: networks: missing"),
        ("never: [10.0.0.0/8]", "p.yaml: networks: missing"),
        ("networks: []", "p.yaml: networks: missing"),
        ("networks:", "p.yaml:1: networks: no value"),
        ("networks: 10.0.0.0/8\nnever:\n", "p.yaml:2: never: no value"),
        ("networks: 10.0.0.0/8\nratelimit: ~", "p.yaml:2: ratelimit: no value"),
        ("networks: ['']", "p.yaml:1: networks: an entry without a value"),
        ("networks: 10.0.0.0/8\ntcpports: ['']", "p.yaml:2: tcpports: an entry without"),
        ("networks:\n- 10.0.0.0/8\n- 10.0.0/8", "p.yaml:3: networks: '10.0.0/8' is no network"),
        ("networks:\n- localhost", "p.yaml:2: networks: localhost is a name"),
        ("networks: {10.0.0.0/8: yes}", "p.yaml:1: networks: a section with keys"),
        ("networks: [[10.0.0.0/8]]", "p.yaml:1: networks: a list is no text"),
        ("network: 10.0.0.0/8", "p.yaml:1: network: unknown key"),
        ("networks: 10.0.0.0/8\nnetworks: 11.0.0.0/8", "p.yaml:2: networks: given twice"),
        ("networks: 10.0.0.0/8\nnever: [10.0.0.0/7]", "p.yaml:2: never: covers all networks"),
        ("networks: 0.0.0.0", "p.yaml:1: networks: 0.0.0.0 and :: are this machine, which is not"),
        ("networks: '::'", "p.yaml:1: networks: 0.0.0.0 and :: are this machine, which is not"),
        ("networks: 10.0.0.0/8\ntcpports: [0]", "p.yaml:2: tcpports: 0 is no port"),
        ("networks: 10.0.0.0/8\ntcpports: ['U:53']", "p.yaml:2: tcpports: U:53 names ports of"),
        ("networks: 10.0.0.0/8\ntcpports: []\nudpports: []", "nothing could be scanned"),
        ("networks: 10.0.0.0/8\nratelimit: 0", "p.yaml:2: ratelimit: 0 is no rate"),
        ("networks: 10.0.0.0/8\nratelimit: -5", "p.yaml:2: ratelimit"),
        ("networks: 10.0.0.0/8\nworkers: 0", "p.yaml:2: workers: 0 is out of range"),
        ("networks: 10.0.0.0/8\nnames: maybe", "p.yaml:2: names: maybe is neither"),
        ("networks: 10.0.0.0/8\nmodules: [telnet]", "p.yaml:2: modules: telnet is not known"),
        ("- 10.0.0.0/8", "p.yaml:1: a list is no section"),
        ("networks: 10.0.0.0/8\n---\nnetworks: 0.0.0.0/0", "p.yaml"),
        ("networks: [10.0.0.0/8", "p.yaml"),
        ("networks: !x [10.0.0.0/8]", "p.yaml"),
    ],
)
def test_what_is_not_understood_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read(text)
    assert words in error.value.message
    assert error.value.exit_status == 2


def test_the_nearest_right_key_is_named() -> None:
    with pytest.raises(UserError, match="unknown key") as error:
        read("networks: 10.0.0.0/8\nratelimits: 5")
    assert error.value.hint == "did you mean ratelimit?"


@given(st.text(max_size=80) | st.sampled_from(["networks: ", "never: ["]))
def test_any_text_is_a_policy_or_a_mistake_of_its_user(text: str) -> None:
    for each in (text, f"networks: {text}", f"networks: 10.0.0.0/8\nnever: {text}"):
        try:
            policy = read(each)
        except UserError:
            continue
        assert policy.networks4 or policy.networks6  # never of nothing at all


def written(directory: Path, text: str = "networks: 127.0.0.0/8\n", mode: int = 0o600) -> str:
    path = directory / "policy.yaml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_a_file_that_only_its_owner_can_change_is_read(tmp_path: Path, mode: int) -> None:
    assert read_policy(written(tmp_path, mode=mode)).words() == "127.0.0.0/8 only"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UserError, match="can be changed by other users") as error:
        read_policy(written(tmp_path, mode=mode))
    assert "chmod go-w" in error.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    os.chown(path, 12345, -1)
    with pytest.raises(UserError, match="belongs to user 12345"):
        read_policy(path)


@pytest.mark.parametrize("text", [None, "", "networks: nonsense!\n", "networks: \xff\n"])
def test_without_a_good_policy_no_node_starts(
    tmp_path: Path,
    text: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr("nray.api.attend.start_fork_server", started)
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
        path.chmod(0o600)
    assert _status(["node", "--policy", str(path)], "nray") == 2
    assert "policy.yaml" in capsys.readouterr().err


def test_every_key_is_on_the_page_with_kind_and_default() -> None:
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in PAGE.splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]]
    }
    assert list(rows) == [field.key for field in fields(PolicyFile)]
    for field in fields(PolicyFile):
        kind, default, _ = rows[field.key]
        assert field.kind is not None
        assert kind == field.kind.name
        written = field.kind.write(field.default)
        text = {True: "true", False: "false"}.get(written) if isinstance(written, bool) else None
        wanted = text or str(written).replace("'", "")
        assert default == ("none" if field.key == "networks" else f"`{wanted}`")


# ── what it allows ──────────────────────────────────────────────────────────────────────────


@st.composite
def rules(draw: st.DrawFn):
    """Networks that are allowed, some that never are, and an address, often at an edge of one."""
    bits, kind = draw(st.sampled_from([(32, ipaddress.IPv4Address), (128, ipaddress.IPv6Address)]))
    numbers = st.integers(0, 2**bits - 1)
    network = st.builds(
        lambda number, left: ipaddress.ip_network((kind(number >> left << left), bits - left)),
        numbers,
        st.integers(0, bits),
    )
    allowed = draw(st.lists(network, min_size=1, max_size=4))
    never = draw(st.lists(network, max_size=4))
    edges = [int(edge) for each in (*allowed, *never) for edge in (each[0], each[-1])]
    return allowed, never, kind(draw(st.sampled_from([*edges, draw(numbers)])))


@given(rules())
def test_allowed_is_what_is_in_networks_and_not_in_never(drawn):
    allowed, never, address = drawn
    text = "networks: [{}]\nnever: [{}]".format(
        ", ".join(f"'{each}'" for each in allowed), ", ".join(f"'{each}'" for each in never)
    )
    try:
        policy = read(text)
    except UserError as error:
        said = "covers all" if never else "are this machine"
        assert said in error.message  # noqa: PT017
        return
    wanted = any(address in each for each in allowed)
    wanted &= not any(address in each for each in never)
    # 0.0.0.0 and :: reach this machine, and some of IPv6 reach IPv4: see below.
    if not int(address) or (address.version == 6 and reaches_ipv4(address)):
        return
    assert allows(policy, str(address)) == wanted
    if address.version == 4:
        assert allows(policy, f"::ffff:{address}") == wanted


def reaches_ipv4(address: ipaddress.IPv6Address) -> bool:
    return bool(
        address.ipv4_mapped or address.sixtofour or address in ipaddress.ip_network("64:ff9b::/96")
    )


def test_addresses_of_the_other_family_are_refused() -> None:
    four, six = read("networks: 0.0.0.0/0"), read('networks: "2001:db8::/32"')
    assert allows(four, "192.0.2.1")
    assert not allows(four, "2001:db8::1")
    assert allows(six, "2001:db8::1")
    assert not allows(six, "2001:db9::1")
    assert not allows(six, "192.0.2.1")


def test_a_mapped_address_is_the_address_that_it_reaches() -> None:
    all_six = read('networks: ["::/0"]\nnever: [10.0.0.0/8]')
    assert not allows(all_six, "::ffff:10.0.0.1")
    assert allows(all_six, "::ffff:192.0.2.1")  # ::/0 holds the mapped ones
    assert allows(read('networks: ["::ffff:192.0.2.0/120"]'), "192.0.2.5")
    without = read('networks: ["::/0"]\nnever: ["::ffff:0:0/96"]')
    assert not allows(without, "::ffff:192.0.2.1")
    assert not allows(without, "192.0.2.1")


@pytest.mark.parametrize("image", ["64:ff9b::a00:1", "2002:a00:1::1", "2002:aff:ffff:ffff::9"])
def test_images_of_what_is_never_scanned_are_not_either(image: str) -> None:
    assert not allows(read('networks: ["::/0"]\nnever: [10.0.0.0/8]'), image)
    assert allows(read('networks: ["::/0"]\nnever: [11.0.0.0/8]'), image)


def test_the_unspecified_address_is_this_machine() -> None:
    assert allows(read("networks: 0.0.0.0/0"), "0.0.0.0")
    for text in ("networks: 0.0.0.0/8", "networks: 0.0.0.0/0\nnever: 127.0.0.0/8"):
        assert not allows(read(text), "0.0.0.0")
        assert not allows(read(text), "::ffff:0.0.0.0")
        assert allows(read(text), "0.0.0.1")
    assert not allows(read('networks: ["::/0"]\nnever: ["::1"]'), "::")


@given(st.sets(st.integers(1, 65535), max_size=5), st.integers(1, 65535), st.booleans())
def test_ports_are_those_allowed(ports, port, is_udp):
    """Of either family."""
    protocol, other = (UDP, TCP) if is_udp else (TCP, UDP)
    key = "udpports" if is_udp else "tcpports"
    policy = read(
        f"networks: [192.0.2.0/24, '2001:db8::/32']\n{key}: [{', '.join(map(str, ports))}]"
    )
    for address in ("192.0.2.1", "2001:db8::1"):
        for each in {port, *ports}:
            assert allows(policy, address, each, protocol) == (each in ports)
            assert allows(policy, address, each, other)


def test_limits_are_the_lower_of_two() -> None:
    policy = read("networks: 192.0.2.0/24\nratelimit: 100\nworkers: 50")
    for asked, rate, workers in (
        (Settings(), 100.0, 50),
        (Settings(ratelimit=1e300, workers=10**9), 100.0, 50),
        (Settings(ratelimit=3.5, workers=7), 3.5, 7),
    ):
        cut = policy.restrict(asked)
        assert (cut.ratelimit, cut.workers) == (rate, workers)
    free = read("networks: 192.0.2.0/24")
    settings = Settings(ratelimit=9.0, workers=3)
    assert free.restrict(settings) == settings
    assert free.restrict(Settings()) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("networks: 127.1.0.0/16", "127.1.0.0/16 only"),
        (
            "networks: [10.0.0.1, 10.0.0.5-10.0.0.9]\nnever: [10.0.0.6]",
            "10.0.0.1, 10.0.0.5-10.0.0.9 without 10.0.0.6 only",
        ),
        (
            "networks: [10.0.0.0, 10.0.0.2, 10.0.0.4, 10.0.0.6, 10.0.0.8]\nnames: no",
            "10.0.0.0, 10.0.0.2, 10.0.0.4, 10.0.0.6 and 1 more only; no names",
        ),
        (
            "networks: '2001:db8::/32'\ntcpports: [22, 80-90]\nudpports: []\nratelimit: 5\n"
            "workers: 9",
            "2001:db8::/32 only; tcp 22,80-90, no udp; 5 probes a second; 9 in flight",
        ),
    ],
)
def test_it_can_be_told_in_one_line(text: str, words: str) -> None:
    assert read(text).words() == words


@pytest.mark.parametrize(
    ("policy", "targets", "exclude", "whole"),
    [
        ("networks: 10.0.0.0/8", ["11.0.0.0/8"], [], True),
        ("networks: 10.0.0.0/8", ["11.0.0.0/16", "10.255.255.255"], [], False),
        ("networks: 10.0.0.0/8", ["2001:db8::1"], [], True),
        ("networks: '2001:db8::/32'", ["2001:db9::/112"], [], True),
        ("networks: '2001:db8::/32'", ["2001:db9::/112", "2001:db8:ffff::1"], [], False),
        ("networks: '2001:db8::/32'", ["10.0.0.1"], [], True),
        ("networks: 10.0.0.0/8", ["localhost"], [], False),
        ("networks: 10.0.0.0/8\nnames: no", ["localhost"], [], True),
        ("networks: 10.0.0.0/8\nnames: no", ["10.0.0.1"], ["localhost"], True),
        ("networks: 10.0.0.0/8", ["10.0.0.1"], ["localhost"], False),
    ],
)
def test_segments_that_are_refused_as_a_whole(policy, targets, exclude, whole):
    (segment,) = plan(targets, tcp="1", seed=1, exclude=exclude).segments
    assert read(policy).refuses_whole(segment) == whole


def test_names_beside_networks_are_left_to_the_workers() -> None:
    (segment,) = plan(["10.0.0.1"], tcp="1", seed=1).segments
    both = dataclasses.replace(segment, names=("localhost",))
    assert not read("networks: 10.0.0.0/8\nnames: no").refuses_whole(both)
    assert read("networks: 11.0.0.0/8\nnames: no").refuses_whole(both)
    assert not read("networks: 11.0.0.0/8").refuses_whole(both)


# ── in the core ─────────────────────────────────────────────────────────────────────────────


def drive(policy: Policy) -> Drive:
    return Drive(_core.Engine(bucket(), policy=core(policy), tcp_timeout_s=0.5, udp_timeout_s=0.1))


@pytest.mark.parametrize(
    ("text", "targets", "refused"),
    [
        ("networks: 127.1.0.0/29\nnever: 127.1.0.2", "127.0.255.250-127.1.0.15", 15),
        ("networks: '::/125'\nnever: '::2-::7'", "::1-::16", 21),
    ],
    ids=["v4", "v6"],
)
def test_what_is_refused_is_counted_apart_and_not_sent(
    text: str, targets: str, refused: int
) -> None:
    tested = drive(read(text))
    tested.engine.add_slice(1, 0, 22, space([targets], tcp(9)), None)
    ended = tested.to_end()
    assert (ended.counts["refused"], ended.counts["closed"]) == (refused, 22 - refused)
    assert tested.engine.sent == 22 - refused


@pytest.mark.parametrize(
    ("text", "excluded", "found"),
    [
        ("networks: 127.1.0.0/16", "127.2.0.0-127.2.255.255",
         ["127.2.0.1", "127.3.0.1", "127.1.0.1"]),
        ("networks: '::1'", "::2:0-::2:ffff", ["::2:1", "::3:1", "::1"]),
    ],
    ids=["v4", "v6"],
)  # fmt: skip
def test_excluded_goes_before_refused(text: str, excluded: str, found: list[str]) -> None:
    tested = drive(read(text))
    packed = {0: [ipaddress.ip_address(each).packed for each in found]}
    tested.engine.add_names(1, 0, 1, space([], tcp(9), 1), exclusions(excluded), packed)
    counts = tested.to_end().counts
    assert (counts["excluded"], counts["refused"], counts["closed"], counts["more"]) == (1, 1, 1, 2)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "::ffff:10.0.0.1", "::1", "0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:127.2.0.1"],
)
def test_what_a_name_resolves_to_is_refused_if_it_lies_outside(address: str) -> None:
    tested = drive(read("networks: 127.1.0.0/16"))
    found = {0: [ipaddress.ip_address(address).packed]}
    tested.engine.add_names(1, 0, 2, space([], [*tcp(9), *udp(9)], 1), None, found)
    assert tested.to_end().counts["refused"] == 2
    assert tested.engine.sent == 0


def test_a_name_that_was_not_looked_up_is_refused() -> None:
    tested = drive(read("networks: [0.0.0.0/0, '::/0']"))
    tested.engine.add_names(1, 0, 1, space([], tcp(9), 1), None, {0: [b""]})
    assert tested.to_end().counts["refused"] == 1
    with pytest.raises(ValueError, match="4 or 16 bytes"):
        _core.Engine(bucket()).add_names(1, 0, 1, space([], tcp(9), 1), None, {0: [b""]})


@pytest.mark.parametrize("targets", ["127.0.0.0-127.63.255.255", "2001:db8::-2001:db8::3f:ffff"])
def test_a_slow_rate_does_not_slow_what_is_refused(targets: str) -> None:
    engine = _core.Engine(bucket(rate=0.001), policy=core(read("networks: 192.0.2.0/24")))
    engine.add_slice(1, 0, 2**22, space([targets], tcp(9)), None)
    assert Drive(engine).to_end().counts["refused"] == 2**22


@pytest.mark.parametrize("ports", [[(6, 0, 5)], [(6, 5, 4)], [(6, 1, 65536)], [(1, 1, 1)]])
def test_ports_that_there_are_not(ports):
    with pytest.raises(ValueError, match="no such ports"):
        _core.Policy(_core.Exclusions([], []), ports)
