"""Writing a Config out: what `config show` prints reads back to the same Config."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nray.config import kinds
from nray.config.durations import DURATION_MAX_S, parse_duration
from nray.config.reader import loads
from nray.config.rules import relations
from nray.config.schema import (
    Config,
    Elasticsearch,
    Events,
    Field,
    JsonFile,
    Ldap,
    Section,
    TargetGenerator,
    Terminal,
    fields,
    leaves,
)
from nray.config.secret import MASK, SecretText
from nray.config.writer import to_yaml

TEXT = st.text(
    st.characters(exclude_categories=("Cc", "Cs")) | st.sampled_from("'\"\\#:{}[]&*!|>%@` -?,~"),
    max_size=12,
)
SECONDS = st.integers(1, int(DURATION_MAX_S) * 10**9).map(lambda ns: parse_duration(f"{ns}ns"))
PORT = st.integers(1, 65535)
PAYLOAD = st.binary(max_size=12)
PATH = st.lists(st.text("abcXYZ01", min_size=1, max_size=5), min_size=1, max_size=3).map(".".join)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
WORDS = st.lists(TEXT.filter(str.strip), max_size=4, unique=True).map(tuple)

#: What values a key may hold, by its kind; checked to be complete below.
BY_KIND: dict[type, st.SearchStrategy[Any]] = {
    kinds.Bool: st.booleans(),
    kinds.AutoInt: st.integers(0, 1024),
    kinds.Discovery: st.sampled_from(["none", "ping", "arp", "auto", "syn:80,443"]),
    kinds.Rate: st.just(0.0) | st.floats(1e-9, 1e18),
    kinds.AutoRate: st.sampled_from([0.0, kinds.AUTO_RATE]) | st.floats(1e-9, 1e18),
    kinds.Duration: SECONDS,
    kinds.Text: TEXT,
    kinds.Secret: st.sampled_from([MASK, ""]).map(SecretText),
    kinds.Regex: st.sampled_from(["^.*$", r"^www[.]\d+", "a'b", ""]),
    kinds.NodePatterns: st.lists(
        st.sampled_from(["*", "a b", "*.lab", "n[0-9]"]), min_size=1, unique=True
    ).map(tuple),
    kinds.Payload: PAYLOAD,
    kinds.Payloads: st.dictionaries(PORT, PAYLOAD, max_size=4),
    kinds.Filter: st.dictionaries(PATH, SCALAR, max_size=4),
    kinds.States: st.lists(
        st.sampled_from(["closed", "filtered", "open|filtered", "error"]), unique=True
    ).map(tuple),
}
BY_ITEM: dict[type, st.SearchStrategy[Any]] = {
    kinds.Int: st.lists(PORT, min_size=1, max_size=3, unique=True).map(tuple),
    kinds.Text: WORDS,
    kinds.Choice: st.sampled_from([(), ("ssh",), ("http", "ssh")]),
    kinds.PortExpression: st.sampled_from([(), ("22", "top25"), ("0x", "1-3", "all")]),
    kinds.Subscription: st.sampled_from([(), ("tcp/22",), ("tcp/1", "udp/53")]),
}


def value_of(field: Field) -> st.SearchStrategy[Any]:
    kind = field.kind
    if type(kind) is kinds.ListOf:
        return BY_ITEM[type(kind._item)]
    if type(kind) is kinds.Int:
        numbers = st.integers(kind.low, kind.high)
        return st.none() | numbers if field.default is None else numbers
    if type(kind) is kinds.Choice:
        return st.sampled_from(kind._words)
    return BY_KIND[type(kind)]


def section_of(section: type[Section]) -> st.SearchStrategy[Any]:
    made = {}
    for field in fields(section):
        if field.section is None:
            made[field.attribute] = value_of(field)
        elif field.default is None:
            made[field.attribute] = st.none() | section_of(field.section)
        else:
            made[field.attribute] = section_of(field.section)
    return st.builds(section, **made)


CONFIGS = section_of(Config)


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(CONFIGS)
def test_what_is_written_reads_back_to_an_equal_config(config: Config) -> None:
    if any(True for _ in relations(config)):
        config = msgspec.structs.replace(
            config, tls=Config().tls, targetgenerator=TargetGenerator(), events=Events()
        )
    assert loads(to_yaml(config)) == config


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(PATH, SCALAR, max_size=6), PAYLOAD, TEXT)
@example(
    {"a": "1e5", "b": "yes", "c": "~", "d": "010", "e": "", "f": " x", "g": "é\u2028"}, b"", ""
)
def test_the_awkward_values_read_back(filter_: dict[str, Any], payload: bytes, text: str) -> None:
    config = loads("events.terminal:")
    config = msgspec.structs.replace(
        config,
        host=text,
        events=Events(terminal=Terminal(filter=filter_)),
        scannerconfig=msgspec.structs.replace(
            config.scannerconfig,
            udp=msgspec.structs.replace(config.scannerconfig.udp, default_hex_payload=payload),
        ),
    )
    assert loads(to_yaml(config)) == config


def test_every_key_is_written_with_its_default() -> None:
    everything = Config(
        events=Events(terminal=Terminal(), json_file=JsonFile(), elasticsearch=Elasticsearch())
    )
    document = yaml.safe_load(to_yaml(everything))
    for path, field in leaves():
        value = document
        for part in path.split("."):
            value = value[part]
        assert value == (None if field.default is None else field.kind.write(field.default)), path
    assert document["internal"]["nodeExpiryTime"] == 30
    assert document["scannerconfig"]["tcp"]["timeout"] == "2500ms"
    assert document["scannerconfig"]["workers"] == "auto"
    assert document["scannerconfig"]["ratelimit"] == "none"
    assert loads(to_yaml(loads("scannerconfig.ratelimit: auto"))) == loads(
        "scannerconfig.ratelimit: auto"
    )


def test_outputs_that_are_not_there_stay_away() -> None:
    assert loads(to_yaml(Config())).events == Events()
    assert yaml.safe_load(to_yaml(Config()))["events"] == {}


def test_secrets_are_masked() -> None:
    config = Config(targetgenerator=TargetGenerator(ldap=Ldap(ldap_pass=SecretText("hunter2"))))
    shown = to_yaml(config)
    assert "hunter2" not in shown
    assert f"ldapPass: '{MASK}'" in shown
    # Its length is no secret's either.
    longer = Config(targetgenerator=TargetGenerator(ldap=Ldap(ldap_pass=SecretText("x" * 99))))
    assert to_yaml(longer) == shown


def test_a_config_is_encoded_by_nothing_else() -> None:
    """It holds secrets, so what goes to a ledger or a peer can only be the writer's text."""
    for encode in (msgspec.msgpack.encode, msgspec.json.encode, pickle.dumps):
        with pytest.raises(TypeError):
            encode(Config())
