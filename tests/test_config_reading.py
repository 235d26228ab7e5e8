"""YAML to Config: every spelling that is right, and every mistake with its line and its cure."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nray import UserError
from nray.config import reader, yamltext
from nray.config.errors import ConfigError, Problem
from nray.config.kinds import AUTO_RATE
from nray.config.reader import load, loads
from nray.config.schema import (
    Config,
    Elasticsearch,
    Events,
    JsonFile,
    Terminal,
    TerminalInternal,
    Tls,
)

# Every key of the first nray's example files and of its manual, in its own spelling, with values
# of our own.
FIRST_NRAY = r"""
debug: true
listen: [8601, "8602"]
host: "0.0.0.0"
TLS:
  enabled: false
  CA: "/pki/ca.pem"
  cert: "/pki/server.pem"
  key: "/pki/server-key.pem"
  forceClientAuth: false
statusPrintInterval: 20s
pools: 2
considerClientPoolPreference: false
allowMultipleNodesPerHost: true
internal:
  nodeExpiryTime: 31
  nodeExpiryCheckInterval: 11
targetgenerator:
  bufferSize: 6
  standard:
    enabled: true
    targets: ["192.0.2.1/28", "host.example"]
    targetFile: "./targets.txt"
    tcpports: ["top25", "80", 443, "7000-7004"]
    udpports: ["top5", "1433"]
    blacklist: [192.0.2.3]
    blacklistFile: "./blacklist.txt"
    maxHostsPerBatch: 151
    maxTcpPortsPerBatch: 26
    maxUdpPortsPerBatch: 27
  certificatetransparency:
    enabled: false
    domainRegex: '^www[.].*$'
    tcpports: [top25]
    udpports: [top25]
    blacklist: []
    maxHostsPerBatch: 150
    maxTcpPortsPerBatch: 25
    maxUdpPortsPerBatch: 25
  ldap:
    enabled: false
    ldapSearchString: "(objectCategory=server)"
    baseDN: "dc=example,dc=com"
    ldapAttribute: "cn"
    ldapServer: "directory.example"
    ldapPort: 637
    insecure: true
    ldapUser: "u"
    ldapPass: "p"
    tcpports: [top25]
    udpports: [top25]
    blacklist: []
    maxHostsPerBatch: 5
    maxTcpPortsPerBatch: 25
    maxUdpPortsPerBatch: 25
scannerconfig:
  workers: 900
  ratelimit: "none"
  tcp:
    timeout: 1000ms
  udp:
    fast: true
    defaultHexPayload: "\x6e\x72\x61\x79"
    customHexPayloads:
      "19": "A"
    timeout: 1500ms
  zgrab2:
    enabledModules: []
    ssh:
      subscribePorts: ["tcp/2222"]
      timeout: 2600ms
      ClientID: "SSH-2.0-x"
      CollectUserAuth: false
    http:
      subscribeHTTPPorts: ["tcp/81"]
      subscribeHTTPSPorts: ["tcp/444"]
      timeout: 2700ms
      method: "HEAD"
      endpoint: "/x"
      userAgent: "y"
      retryHTTPS: false
      maxRedirects: 3
events:
  terminal:
    enabled: true
    filter:
      environment:
      result.portscan.open: true
    internal:
      channelsize: 1001
  json-file:
    enabled: true
    filename: "out.json"
    overwriteExisting: true
    filter:
      result.port: 25
    internal:
      channelsize: 10001
      synctimer: 12s
  elasticsearch:
    enabled: false
    server: "elastic.example"
    useTLS: false
    port: 9200
    internal:
      indexname: "z"
      channelsize: 10002
      committimer: 4
"""


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as refused:
        loads(text, "conf.yaml")
    return refused.value.problems


def problem(text: str) -> Problem:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


# ── what is right ───────────────────────────────────────────────────────────────────────────


def test_first_nrays_file_is_read_whole() -> None:
    config = loads(FIRST_NRAY)
    standard = config.targetgenerator.standard
    ldap = config.targetgenerator.ldap
    http = config.scannerconfig.zgrab2.http
    assert config.listen == (8601, 8602)
    assert (config.debug, config.host, config.pools) == (True, "0.0.0.0", 2)
    assert config.status_print_interval_s == 20.0
    assert not config.consider_client_pool_preference
    assert config.allow_multiple_nodes_per_host
    assert config.tls == Tls(ca="/pki/ca.pem", cert="/pki/server.pem", key="/pki/server-key.pem")
    assert config.internal.node_expiry_time_s == 31.0
    assert config.internal.node_expiry_check_interval_s == 11.0
    assert config.targetgenerator.buffer_size == 6
    assert standard.targets == ("192.0.2.1/28", "host.example")
    assert standard.tcp_ports == ("top25", "80", "443", "7000-7004")
    assert standard.udp_ports == ("top5", "1433")
    assert (standard.target_file, standard.blacklist_file) == ("./targets.txt", "./blacklist.txt")
    assert standard.blacklist == ("192.0.2.3",)
    assert standard.max_hosts_per_batch == 151
    assert (standard.max_tcp_ports_per_batch, standard.max_udp_ports_per_batch) == (26, 27)
    assert config.targetgenerator.certificatetransparency.domain_regex == "^www[.].*$"
    assert (ldap.ldap_server, ldap.ldap_port, ldap.ldap_pass.reveal()) == (
        "directory.example",
        637,
        "p",
    )
    assert config.scannerconfig.workers == 900
    assert config.scannerconfig.ratelimit == 0.0
    assert config.scannerconfig.tcp.timeout_s == 1.0
    assert config.scannerconfig.udp.custom_hex_payloads == {19: b"A"}
    assert config.scannerconfig.udp.fast
    assert (http.subscribe_http_ports, http.max_redirects) == (("tcp/81",), 3)
    assert config.events.terminal == Terminal(
        filter={"environment": None, "result.portscan.open": True},
        internal=TerminalInternal(channelsize=1001),
    )
    assert config.events.json_file is not None
    assert config.events.json_file.internal.synctimer_s == 12.0
    assert config.events.elasticsearch is not None
    assert config.events.elasticsearch.internal.committimer_s == 4.0


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "~", "{}", "\ufeff"])
def test_nothing_written_is_all_defaults(text: str) -> None:
    assert loads(text) == Config()


def test_defaults_of_the_first_nray() -> None:
    config = Config()
    assert (config.debug, config.listen, config.host) == (False, (8601,), "127.0.0.1")
    assert (config.status_print_interval_s, config.pools) == (15.0, 1)
    assert config.consider_client_pool_preference
    assert not config.allow_multiple_nodes_per_host
    assert config.tls == Tls(enabled=False, ca="", cert="", key="", force_client_auth=False)
    assert config.internal.node_expiry_time_s == 30.0
    assert config.targetgenerator.buffer_size == 5
    assert config.targetgenerator.standard.tcp_ports == ("top25",)
    assert config.targetgenerator.standard.max_hosts_per_batch is None
    assert config.targetgenerator.ldap.ldap_port == 636
    assert (config.scannerconfig.workers, config.scannerconfig.ratelimit) == (0, 0.0)
    assert (config.scannerconfig.tcp.timeout_s, config.scannerconfig.udp.timeout_s) == (2.5, 2.5)
    assert config.scannerconfig.udp.default_hex_payload == b"nray"
    assert config.events == Events()
    assert JsonFile().filename == "nray-output.json"
    assert (Elasticsearch().enabled, Elasticsearch().port) == (False, 443)


@pytest.mark.parametrize(
    "text",
    [
        "TLS: {enabled: true, cert: c, key: k}",
        "TLS.enabled: true\nTLS.cert: c\nTLS.key: k",
        "tls.ENABLED: true\nTls:\n  CERT: c\n  Key: k",
        "TLS:\n  cert: c\nTLS.enabled: yes\ntls.key: k",
        "TLS: {cert: c, key: k}",  # on by itself, as certificates are given
    ],
)
def test_keys_in_any_case_nested_flat_or_mixed(text: str) -> None:
    assert loads(text).tls == Tls(enabled=True, cert="c", key="k")


def test_tls_stays_off_where_the_file_says_so() -> None:
    assert not loads("TLS: {enabled: false, cert: c, key: k}").tls.enabled
    assert not loads("TLS: {cert: c}").tls.enabled


def test_flat_keys_at_depth_meet_nested_ones() -> None:
    config = loads(
        "events.json-file.filename: a.json\n"
        "events:\n"
        "  json-file.internal.synctimer: 5s\n"
        "  json-file:\n"
        "    internal: {channelsize: 7}\n"
        "    filter.result: {port: 25}\n"
        "events.json-file.filter.environment:\n"
    )
    written = config.events.json_file
    assert written is not None
    assert (written.filename, written.internal.channelsize) == ("a.json", 7)
    assert written.internal.synctimer_s == 5.0
    assert written.filter == {"result.port": 25, "environment": None}


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("events:\n  terminal:\n", True),
        ("events: {terminal: {}}", True),
        ("events: {terminal: {enabled: false}}", False),
        ("events.terminal.format: json", True),
    ],
)
def test_an_output_is_on_by_its_presence(text: str, on: bool) -> None:
    terminal = loads(text).events.terminal
    assert terminal is not None
    assert terminal.enabled is on
    assert loads("events:\n").events.terminal is None


@pytest.mark.parametrize(
    "text", ["listen: 8601", "listen: '8601'", "listen: [8601, '8601']", "listen: ['8601', ]"]
)
def test_ports_to_listen_on_in_any_form(text: str) -> None:
    assert loads(text).listen == (8601,)
    assert loads('listen: "8601 8602"').listen == (8601, 8602)


def test_a_key_without_a_value_means_its_default() -> None:
    config = loads(
        "TLS:\nhost:\nlisten: ~\ntargetgenerator:\n  standard:\n    targets:\n    blacklist: ['']\n"
    )
    assert config == Config()


def test_bare_numbers_are_seconds_under_internal() -> None:
    config = loads("internal: {nodeExpiryTime: 2.5, nodeExpiryCheckInterval: 1m}")
    assert config.internal.node_expiry_time_s == 2.5
    assert config.internal.node_expiry_check_interval_s == 60.0
    written = loads("events.json-file.internal.synctimer: 3").events.json_file
    assert written is not None
    assert written.internal.synctimer_s == 3.0


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("none", 0.0),
        ('"NONE"', 0.0),
        ("1000", 1000.0),
        ('"2.5"', 2.5),
        ("1e6", 1e6),
        ("~", 0.0),
        ("auto", AUTO_RATE),
        ('"AUTO"', AUTO_RATE),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert loads(f"scannerconfig.ratelimit: {text}").scannerconfig.ratelimit == rate


@pytest.mark.parametrize(
    ("text", "count"), [("auto", 0), ("AUTO", 0), ("1", 1), ('"250"', 250), ("1_000", 1000)]
)
def test_workers(text: str, count: int) -> None:
    assert loads(f"scannerconfig.workers: {text}").scannerconfig.workers == count


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        (r'"\x6e\x72\x61\x79"', b"nray"),
        (r"'\x6e\x72\x61\x79'", b"nray"),
        (r"'\156\162\141\171'", b"nray"),
        (r"nray", b"nray"),
        (r"\x00\xff", b"\x00\xff"),
        (r'"\xff\x00"', b"\xff\x00"),
        (r"'\n\t\\\377'", b"\n\t\\\xff"),
        (r'"\\x41"', rb"\x41"),  # a backslash of the user's own, in double quotes
        ("1234", b"1234"),
        ("''", b""),
    ],
)
def test_payloads_in_every_kind_of_quotes(text: str, payload: bytes) -> None:
    config = loads(f"scannerconfig: {{udp: {{defaultHexPayload: {text}}}}}")
    assert config.scannerconfig.udp.default_hex_payload == payload


@pytest.mark.parametrize("text", ["top-70000", "Top100", "all", "U:53,T:80", "8100-8000", "1-"])
def test_port_expressions_are_only_looked_over(text: str) -> None:
    config = loads(f"targetgenerator.standard.tcpports: ['{text}']")
    assert config.targetgenerator.standard.tcp_ports == (text,)


def test_payloads_by_port_with_ports_as_text_or_numbers() -> None:
    config = loads("scannerconfig.udp:\n  customHexPayloads: {'19': A, 20: B}\n"
                   "  customHexPayloads.21: C\n")  # fmt: skip
    assert config.scannerconfig.udp.custom_hex_payloads == {19: b"A", 20: b"B", 21: b"C"}


def test_filter_values_keep_their_type() -> None:
    config = loads(
        "events.terminal.filter:\n  a: 1\n  b: 1.5\n  c: true\n  d: 'true'\n  e: x\n  f:\n"
        "  g: '1'\n  h: {}\n  i: {j: {k: 2}}\n  nodeName: N\n"
    )
    assert config.events.terminal is not None
    got = config.events.terminal.filter
    assert got == {
        "a": 1, "b": 1.5, "c": True, "d": "true", "e": "x", "f": None, "g": "1", "h": None,
        "i.j.k": 2, "nodeName": "N",
    }  # fmt: skip
    assert [type(value) for value in got.values()][:4] == [int, float, bool, str]


@pytest.mark.parametrize("text", ["[closed, error]", '"closed,error"', "[open, CLOSED, error]"])
def test_states(text: str) -> None:
    terminal = loads(f"events.terminal.states: {text}").events.terminal
    assert terminal is not None
    assert terminal.states == ("closed", "error")
    piped = loads("events.terminal.states: [open|filtered]").events.terminal
    assert piped is not None
    assert piped.states == ("open|filtered",)


def test_our_own_keys() -> None:
    config = loads(
        "seed: 18446744073709551615\nscannerconfig.processes: 2\n"
        "targetgenerator.standard: {iHavePermission: true, includeReserved: true}\n"
    )
    assert config.seed == 2**64 - 1
    assert config.scannerconfig.processes == 2
    assert config.targetgenerator.standard.i_have_permission
    assert config.targetgenerator.standard.include_reserved


def test_aliases_and_merge_keys() -> None:
    config = loads(
        "targetgenerator:\n"
        "  standard: &s\n    tcpports: &p [22, 80]\n    udpports: *p\n"
        "  ldap:\n    <<: *s\n    tcpports: [443]\n"
    )
    assert config.targetgenerator.standard.udp_ports == ("22", "80")
    assert config.targetgenerator.ldap.udp_ports == ("22", "80")
    assert config.targetgenerator.ldap.tcp_ports == ("443",)


# ── what is wrong ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "key", "right"),
    [
        ("poolz: 3", "poolz", "did you mean pools?"),
        ("TLS: {enable: true}", "TLS.enable", "did you mean TLS.enabled?"),
        ("tls.enabeld: true", "tls.enabeld", "did you mean TLS.enabled?"),
        ("timeout: 5s", "timeout", "scannerconfig.tcp.timeout"),
        ("tcp.timeout: 5s", "tcp.timeout", "did you mean scannerconfig.tcp.timeout?"),
        ("workers: 5", "workers", "did you mean scannerconfig.workers?"),
        ("events: {jsonfile: {}}", "events.jsonfile", "did you mean events.json-file?"),
        ("events.json-file.filname: x", "events.json-file.filname", "events.json-file.filename?"),
        ("targetgenerator.ldap.server: d", "targetgenerator.ldap.server", "ldap.ldapServer?"),
        ("scannerconfig.zgrab2.enabled: true", "scannerconfig.zgrab2.enabled", "enabledModules?"),
        ("targts: [a]", "targts", "did you mean targetgenerator.standard.targets?"),
        ("zzzzzz: 1", "zzzzzz", "the keys here are debug, listen"),
        ("scannerconfig: {tcp: {qqq: 1}}", "scannerconfig.tcp.qqq", "the keys here are method"),
        ("TLS.: 1", "TLS.", "did you mean TLS?"),
        (".enabled: 1", ".enabled", ""),
        ("? ''\n: 1", "", ""),
        ("TLS.enabled.x: true", "TLS.enabled.x", "has no keys of its own"),
    ],
)
def test_unknown_keys_name_the_nearest_right_one(text: str, key: str, right: str) -> None:
    found = problem(text)
    assert (found.file, found.line, found.key) == ("conf.yaml", 1, key)
    assert right in found.right


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("debug", "1", "true or false"),
        ("debug", '"true"', "unquoted"),
        ("debug", "maybe", "true or false"),
        ("debug", "[true]", "true or false"),
        ("pools", "0", "from 1 to"),
        ("pools", "-1", "from 1 to"),
        ("pools", "2.0", "whole number"),
        ("pools", "two", "whole number"),
        ("pools", "010", "whole number"),
        ("pools", "0x10", "whole number"),
        ("pools", "9" * 5000, "whole number"),
        ("pools", "[1]", "whole number"),
        ("pools", "true", "whole number"),
        ("listen", "0", "1 to 65535"),
        ("listen", "[8601, 65536]", "1 to 65535"),
        ("listen", "[]", "at least one"),
        ("listen", "'8601,8602'", "1 to 65535"),
        ("listen", "{a: 1}", "a list"),
        ("listen", "[[8601]]", "1 to 65535"),
        ("host", "[a]", "text"),
        ("host", "no", "in quotes"),
        ("host", r'"a\0b"', "without"),
        ("host", r'"a\nb"', "without"),
        ("seed", "-1", "from 0 to"),
        ("seed", "18446744073709551616", "from 0 to"),
        ("statusPrintInterval", "15", "write 15s"),
        ("statusPrintInterval", "0s", "above 0"),
        ("statusPrintInterval", "-5s", "number and a unit"),
        ("statusPrintInterval", "1d", "number and a unit"),
        ("statusPrintInterval", "[15s]", "15s"),
        ("internal.nodeExpiryTime", "0", "above 0"),
        ("internal.nodeExpiryTime", "soon", "number and a unit"),
        ("internal.nodeExpiryTime", "-3", "number and a unit"),
        ("targetgenerator.standard.tcpports", "[70000]", "65535"),
        ("targetgenerator.standard.tcpports", "[0]", "65535"),
        ("targetgenerator.standard.tcpports", "['22 80']", "65535"),
        ("targetgenerator.standard.tcpports", "[80-70000]", "65535"),
        ("targetgenerator.standard.tcpports", "['U:53,T:65536']", "65535"),
        ("targetgenerator.standard.tcpports", "[https://x]", "65535"),
        ("targetgenerator.standard.tcpports", "[[22]]", "text"),
        ("targetgenerator.standard.targets", "{a: b}", "a list"),
        ("targetgenerator.standard.targets", "[no]", "in quotes"),
        ("targetgenerator.standard.maxHostsPerBatch", "0", "from 1 to"),
        ("targetgenerator.certificatetransparency.domainRegex", "'('", "regular expression"),
        ("scannerconfig.workers", "0", "write auto, or a whole number"),
        ("scannerconfig.workers", "many", "auto"),
        ("scannerconfig.processes", "100000", "1024"),
        ("scannerconfig.ratelimit", "0", "none for no limit, or auto"),
        ("scannerconfig.ratelimit", "automatic", "or auto"),
        ("scannerconfig.ratelimit", "-1", "above 0"),
        ("scannerconfig.ratelimit", "fast", "above 0"),
        ("scannerconfig.ratelimit", ".inf", "above 0"),
        ("scannerconfig.ratelimit", "nan", "above 0"),
        ("scannerconfig.ratelimit", "1e999", "above 0"),
        ("scannerconfig.tcp.timeout", "1000", "1000ms"),
        ("scannerconfig.udp.defaultHexPayload", r"'\xZZ'", r"\xHH"),
        ("scannerconfig.udp.defaultHexPayload", r"'\400'", r"\xHH"),
        ("scannerconfig.udp.defaultHexPayload", r"'a\'", r"\xHH"),
        ("scannerconfig.udp.defaultHexPayload", "'€'", r"\xHH"),
        ("scannerconfig.udp.defaultHexPayload", '"€"', r"\xHH"),
        ("scannerconfig.udp.defaultHexPayload", "a" * 1401, "1400"),
        ("scannerconfig.udp.customHexPayloads", "[1]", "below it"),
        ("scannerconfig.zgrab2.enabledModules", "[shh]", "did you mean ssh?"),
        ("scannerconfig.zgrab2.ssh.subscribePorts", "[22]", "tcp/443"),
        ("scannerconfig.zgrab2.ssh.subscribePorts", "[tcp/65536]", "tcp/443"),
        ("events.terminal.format", "xml", "auto or text or json"),
        ("events.terminal.states", "[close]", "did you mean closed?"),
        ("events.terminal.filter", "25", "below it"),
        ("TLS", "5", "below it"),
        ("TLS", "[enabled]", "below it"),
    ],
)
def test_wrong_values_say_what_would_be_right(key: str, value: str, right: str) -> None:
    found = problem(f"# a line before\n{key}: {value}\n")
    assert (found.line, found.key) == (2, key)
    assert right in found.right
    assert found.seen


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("scannerconfig.udp.customHexPayloads: {0: A}", "scannerconfig.udp.customHexPayloads.0"),
        ("scannerconfig.udp.customHexPayloads: {x: A}", "scannerconfig.udp.customHexPayloads.x"),
        ("scannerconfig.udp.customHexPayloads: {19: }", "scannerconfig.udp.customHexPayloads.19"),
        (
            "scannerconfig.udp.customHexPayloads: {19: [A]}",
            "scannerconfig.udp.customHexPayloads.19",
        ),
        ("events.terminal.filter: {a: [1, 2]}", "events.terminal.filter.a"),
        ("events.terminal.filter: {a..b: 1}", "events.terminal.filter.a..b"),
    ],
)
def test_wrong_entries_of_maps(text: str, key: str) -> None:
    assert problem(text).key == key


@pytest.mark.parametrize(
    "text",
    [
        "pools: 1\npools: 1",
        "pools: 1\nPOOLS: 2",
        "TLS.enabled: false\ntls: {enabled: false}",
        "TLS: {CA: a}\nTLS: {cert: b}",
        "events.terminal.filter: {a: 1}\nevents.terminal.filter.a: 1",
        "events.terminal.filter.a.b: 1\nevents.terminal.filter: {a: {b: 1}}",
        "scannerconfig.udp.customHexPayloads: {19: a, '19': b}\n",
    ],
)
def test_a_key_given_twice_names_both_lines(text: str) -> None:
    found = problem(text)
    assert "given twice (line 1 has it first)" in found.seen
    assert found.line == (2 if "\n" in text.rstrip() else 1)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("TLS: {enabled: true, key: k}", "TLS.cert"),
        ("TLS: {enabled: true, cert: c}", "TLS.key"),
        ("TLS: {cert: c, key: k, forceClientAuth: true}", "TLS.CA"),
        ("targetgenerator.ldap.enabled: true", "targetgenerator.ldap.ldapServer"),
        ("events.elasticsearch.enabled: true", "events.elasticsearch.server"),
        ("events.json-file.filename: ''", "events.json-file.filename"),
    ],
)
def test_keys_that_ask_for_others(text: str, key: str) -> None:
    found = problem(text)
    assert (found.line, found.key) == (1, key)
    assert found.right


def test_a_key_that_could_not_be_read_is_not_also_missing() -> None:
    assert [p.key for p in problems("TLS: {enabled: true, cert: [c], key: k}")] == ["TLS.cert"]
    both = {p.key for p in problems("TLS: {enabled: 'true', force: 1}")}
    assert both == {"TLS.enabled", "TLS.force"}


def test_several_mistakes_are_shown_at_once_in_the_order_of_lines() -> None:
    text = "scannerconfig:\n  tcp: {timeout: 5}\npoolz: 1\ndebug: 3\nTLS.enabled: true\n"
    found = problems(text)
    assert [p.line for p in found] == [2, 3, 4, 5, 5]
    with pytest.raises(UserError) as refused:
        loads(text, "conf.yaml")
    shown = str(refused.value)
    assert "conf.yaml: 5 mistakes" in shown
    assert 'conf.yaml:2: scannerconfig.tcp.timeout: "5" has no unit' in shown
    assert refused.value.exit_status == 2


def test_a_file_of_mistakes_costs_no_more_than_a_screen_of_them() -> None:
    start = time.perf_counter()
    found = problems("".join(f"unknownkey{n}: 1\n" for n in range(20_000)))
    assert len(found) == reader.PROBLEMS_MAX
    assert time.perf_counter() - start < 5


def test_what_is_quoted_back_cannot_move_the_cursor() -> None:
    found = problem('"\\e[2Jx": 1')
    assert "\x1b" not in str(found)
    found = problem('host: "\\e[2J\\u202e"')
    assert "\x1b" not in str(found)
    assert "\u202e" not in str(found)
    assert len(problem("pools: " + "x" * 10_000).seen) < 100


# ── what is no configuration at all ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "line", "seen"),
    [
        ("a: [1\nb: 2\n", 2, "not YAML"),
        ("debug: true\n\tpools: 1\n", 2, "not YAML"),
        ("a: b: c\n", 1, "not YAML"),
        ('host: "a', 1, "not YAML"),
        ('x: "\\101"', 1, "not YAML"),
        ("@x: 1", 1, "not YAML"),
        ("debug: true\n---\ndebug: false\n", 2, "second document"),
        ("- a\n- b\n", 1, "a list is no configuration"),
        ("just text", 1, "is no configuration"),
        ("\n!!python/object/apply:os.system ['true']\n", 2, "the tag"),
        ("debug: !!python/name:os.system x\n", 1, "the tag"),
        ("host: !!binary aGk=\n", 1, "the tag"),
        ("x: !custom 1\n", 1, "the tag"),
        ("debug: *nothing\n", 1, "names nothing"),
        ("debug: &a [*a]\n", 1, "within what it names"),
        ("? [a, b]\n: 1\n", 1, "a key that is a list"),
        ("? {a: b}\n: 1\n", 1, "a key that is a list"),
        ("<<: 5\n", 1, "<<"),
        ("host: a\x00b\n", 1, "control character"),
        ("debug: true\nhost: a\x07b\n", 2, "control character"),
        ("[" * 100_000, 1, "nest"),
        ("{a: " * 100_000, 1, "nest"),
        ("- " * 100_000, 1, "nested too deep"),
        ("host: " + "x" * (1 << 20), 0, "more than 1 MiB"),
        ("host: \ud800", 1, "not UTF-8"),
        ("%YAML 3.0\n---\n", 1, "not YAML"),
    ],
    ids=range(26),
)
def test_what_is_not_a_configuration_is_one_clean_error(text: str, line: int, seen: str) -> None:
    found = problem(text)
    assert seen in found.seen
    assert found.line == line


def test_values_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltext, "NODES_MAX", 100)
    found = problem("\ntargetgenerator.standard.targets: [" + "a," * 100 + "]")
    assert (found.line, found.seen) == (2, "more than 100 values")
    assert "targetFile" in found.right


def test_aliases_cannot_multiply_without_bound() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for n in range(1, 12):
        bomb += f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n"
    start = time.perf_counter()
    assert "values" in problem(bomb).seen
    assert time.perf_counter() - start < 2


def test_aliases_cannot_nest_without_bound() -> None:
    tower = "events.terminal.filter:\n  a0: &a0 {x: 1}\n"
    tower += "".join(f"  a{n}: &a{n} {{x: *a{n - 1}}}\n" for n in range(1, 700))
    assert "nested too deep" in problem(tower).seen


def test_the_slower_parser_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltext, "_Loader", yamltext.yaml.SafeLoader)
    assert loads(FIRST_NRAY).scannerconfig.udp.default_hex_payload == b"nray"
    assert loads("debug: yes\nhost: 'yes'").host == "yes"
    assert problem("debug: true\nhost: a\x07b\n").line == 2
    assert "not YAML" in problem("a: [1\nb: 2\n").seen
    assert "the tag" in problem("debug: !!python/name:os.system x\n").seen


@given(st.text(max_size=60) | st.text(alphabet="abTLS.: \n-[]{}&*!|>'\"#%@<?,~\\x0", max_size=60))
def test_any_text_is_read_or_refused_with_the_one_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(loads(text), Config)


@given(
    key=st.sampled_from([path for path, _ in reader.leaves()]),
    value=st.text(alphabet="0123456789abcdefsmh.,:/-_*[]{}'\"\\x |>~&!%@#", max_size=12),
)
def test_any_value_of_any_key_is_read_or_refused(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(loads(f"{key}: {value}\n"), Config)


# ── files ───────────────────────────────────────────────────────────────────────────────────


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nray-conf.yaml"
    path.write_bytes(b"\xef\xbb\xbfpools: 3\r\n")
    assert load(path).pools == load(str(path)).pools == 3


@pytest.mark.parametrize(
    ("data", "line", "seen"),
    [
        (b"debug: true\nhost: caf\xe9\n", 2, "not UTF-8 text (byte 0xe9)"),
        ("debug: true\n".encode("utf-16"), 1, "not UTF-8"),
        (b"\xff" * (1 << 21), 0, "more than 1 MiB"),
        (b"x" * ((1 << 20) - 1) + "é".encode(), 0, "more than 1 MiB"),
    ],
    ids=["latin-1", "utf-16", "binary", "cut within a character"],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, line: int, seen: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load(path)
    (found,) = refused.value.problems
    assert (found.file, found.line) == (str(path), line)
    assert seen in found.seen


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, seen in [
        (tmp_path / "absent.yaml", "No such file"),
        (tmp_path, "directory"),
        ("a\0b", "null byte"),
    ]:
        with pytest.raises(ConfigError) as refused:
            load(path)
        assert seen in str(refused.value)
        assert "cannot be read" in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("debug: true")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(path)


def test_an_endless_file_is_cut_off() -> None:
    with pytest.raises(ConfigError, match="more than 1 MiB"):
        load("/dev/zero")
