"""Every key of the configuration: its spelling, kind and default. The manual's page says the rest.

A section is a frozen struct; an attribute's `Key` gives the spelling in the file and the kind of
its value, and an attribute without a kind is a section of its own. Seconds are floats and end in
``_s``. What goes to the ledger is the text that `writer` makes: a secret does not encode.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from nray.config import kinds
from nray.config.kinds import Kind
from nray.config.nodes import Scalar
from nray.config.secret import SecretText

FilterValue = bool | int | float | str | None


class Key(msgspec.Struct, frozen=True):
    """How an attribute is spelt in the file, and what its value is. No kind: a section."""

    name: str
    kind: Kind | None = None


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all sections."""


# ── server and nodes ────────────────────────────────────────────────────────────────────────


class Tls(Section, frozen=True, kw_only=True):
    """TLS between server and nodes. Paths are as the user wrote them."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = False
    ca: Annotated[str, Key("CA", kinds.TEXT)] = ""
    crl: Annotated[str, Key("crl", kinds.TEXT)] = ""
    cert: Annotated[str, Key("cert", kinds.TEXT)] = ""
    key: Annotated[str, Key("key", kinds.TEXT)] = ""
    force_client_auth: Annotated[bool, Key("forceClientAuth", kinds.BOOL)] = False
    allowed_nodes: Annotated[tuple[str, ...], Key("allowedNodes", kinds.NODE_PATTERNS)] = ("*",)


class Internal(Section, frozen=True, kw_only=True):
    """When a silent node is given up."""

    node_expiry_time_s: Annotated[float, Key("nodeExpiryTime", kinds.SECONDS)] = 30.0
    node_expiry_check_interval_s: Annotated[
        float, Key("nodeExpiryCheckInterval", kinds.SECONDS)
    ] = 10.0


# ── targets ─────────────────────────────────────────────────────────────────────────────────


class Generator(Section, frozen=True, kw_only=True):
    """What all sources of targets have in common.

    The ``max_…`` are None where the user gave none: there is then no cap on a slice.
    """

    tcp_ports: Annotated[tuple[str, ...], Key("tcpports", kinds.PORT_EXPRESSIONS)] = ("top25",)
    udp_ports: Annotated[tuple[str, ...], Key("udpports", kinds.PORT_EXPRESSIONS)] = ("top25",)
    blacklist: Annotated[tuple[str, ...], Key("blacklist", kinds.TEXTS)] = ()
    blacklist_file: Annotated[str, Key("blacklistFile", kinds.TEXT)] = ""
    max_hosts_per_batch: Annotated[int | None, Key("maxHostsPerBatch", kinds.COUNT)] = None
    max_tcp_ports_per_batch: Annotated[int | None, Key("maxTcpPortsPerBatch", kinds.COUNT)] = None
    max_udp_ports_per_batch: Annotated[int | None, Key("maxUdpPortsPerBatch", kinds.COUNT)] = None


class Standard(Generator, frozen=True, kw_only=True):
    """Targets that the user lists."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = True
    targets: Annotated[tuple[str, ...], Key("targets", kinds.TEXTS)] = ()
    target_file: Annotated[str, Key("targetFile", kinds.TEXT)] = ""
    i_have_permission: Annotated[bool, Key("iHavePermission", kinds.BOOL)] = False
    include_reserved: Annotated[bool, Key("includeReserved", kinds.BOOL)] = False


class CertificateTransparency(Generator, frozen=True, kw_only=True):
    """Names from a stream of certificates, as they are issued."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = False
    domain_regex: Annotated[str, Key("domainRegex", kinds.REGEX)] = "^.*$"


class Ldap(Generator, frozen=True, kw_only=True):
    """Names of machines from a directory."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = False
    ldap_search_string: Annotated[str, Key("ldapSearchString", kinds.TEXT)] = (
        "(objectCategory=computer)"
    )
    base_dn: Annotated[str, Key("baseDN", kinds.TEXT)] = ""
    ldap_attribute: Annotated[str, Key("ldapAttribute", kinds.TEXT)] = "dNSHostName"
    ldap_server: Annotated[str, Key("ldapServer", kinds.TEXT)] = ""
    ldap_port: Annotated[int, Key("ldapPort", kinds.PORT)] = 636
    insecure: Annotated[bool, Key("insecure", kinds.BOOL)] = False
    ldap_user: Annotated[str, Key("ldapUser", kinds.TEXT)] = ""
    ldap_pass: Annotated[SecretText, Key("ldapPass", kinds.SECRET)] = SecretText()


class TargetGenerator(Section, frozen=True, kw_only=True):
    """Where targets come from."""

    buffer_size: Annotated[int, Key("bufferSize", kinds.COUNT_OR_ZERO)] = 5
    standard: Annotated[Standard, Key("standard")] = Standard()
    certificatetransparency: Annotated[CertificateTransparency, Key("certificatetransparency")] = (
        CertificateTransparency()
    )
    ldap: Annotated[Ldap, Key("ldap")] = Ldap()


# ── scanners ────────────────────────────────────────────────────────────────────────────────


class Tcp(Section, frozen=True, kw_only=True):
    """The TCP scan. ``retries`` are of ``method`` ``syn`` alone; with ``keep_tarpits`` each port
    is told of hosts on which every port answers."""

    method: Annotated[str, Key("method", kinds.Choice("connect", "syn"))] = "connect"
    retries: Annotated[int, Key("retries", kinds.RETRIES)] = 1
    timeout_s: Annotated[float, Key("timeout", kinds.DURATION)] = 2.5
    adaptive_timeout: Annotated[bool, Key("adaptiveTimeout", kinds.BOOL)] = True
    keep_tarpits: Annotated[bool, Key("keepTarpits", kinds.BOOL)] = False


class Udp(Section, frozen=True, kw_only=True):
    """The UDP scan."""

    fast: Annotated[bool, Key("fast", kinds.BOOL)] = False
    default_hex_payload: Annotated[bytes, Key("defaultHexPayload", kinds.PAYLOAD)] = b"nray"
    custom_hex_payloads: Annotated[dict[int, bytes], Key("customHexPayloads", kinds.PAYLOADS)] = {}
    timeout_s: Annotated[float, Key("timeout", kinds.DURATION)] = 2.5


class Zgrab2Ssh(Section, frozen=True, kw_only=True):
    """The ``ssh`` module."""

    subscribe_ports: Annotated[tuple[str, ...], Key("subscribePorts", kinds.SUBSCRIPTIONS)] = (
        "tcp/22",
    )
    timeout_s: Annotated[float, Key("timeout", kinds.DURATION)] = 2.5
    client_id: Annotated[str, Key("ClientID", kinds.TEXT)] = "SSH-2.0-Go-nray"
    collect_user_auth: Annotated[bool, Key("CollectUserAuth", kinds.BOOL)] = True


class Zgrab2Http(Section, frozen=True, kw_only=True):
    """The ``http`` module."""

    subscribe_http_ports: Annotated[
        tuple[str, ...], Key("subscribeHTTPPorts", kinds.SUBSCRIPTIONS)
    ] = ("tcp/80", "tcp/8080", "tcp/8000")
    subscribe_https_ports: Annotated[
        tuple[str, ...], Key("subscribeHTTPSPorts", kinds.SUBSCRIPTIONS)
    ] = ("tcp/443", "tcp/8443")
    timeout_s: Annotated[float, Key("timeout", kinds.DURATION)] = 2.5
    method: Annotated[str, Key("method", kinds.TEXT)] = "GET"
    endpoint: Annotated[str, Key("endpoint", kinds.TEXT)] = "/"
    user_agent: Annotated[str, Key("userAgent", kinds.TEXT)] = "nray"
    retry_https: Annotated[bool, Key("retryHTTPS", kinds.BOOL)] = True
    max_redirects: Annotated[int, Key("maxRedirects", kinds.COUNT_OR_ZERO)] = 2


class Zgrab2(Section, frozen=True, kw_only=True):
    """Application-layer modules, run against ports as they are found open."""

    enabled_modules: Annotated[
        tuple[str, ...], Key("enabledModules", kinds.ListOf(kinds.Choice("ssh", "http")))
    ] = ()
    ssh: Annotated[Zgrab2Ssh, Key("ssh")] = Zgrab2Ssh()
    http: Annotated[Zgrab2Http, Key("http")] = Zgrab2Http()


class ScannerConfig(Section, frozen=True, kw_only=True):
    """How nodes scan. ``workers`` and ``processes``: 0 is ``auto``; rates: 0.0 is none,
    `kinds.AUTO_RATE` is ``auto``."""

    workers: Annotated[int, Key("workers", kinds.COUNT_OR_AUTO)] = 0
    processes: Annotated[int, Key("processes", kinds.PROCESSES)] = 0
    ratelimit: Annotated[float, Key("ratelimit", kinds.RATE_OR_AUTO)] = 0.0
    host_rate: Annotated[float, Key("hostRate", kinds.RATE)] = 0.0
    network_rate: Annotated[float, Key("networkRate", kinds.RATE)] = 0.0
    discovery: Annotated[str, Key("discovery", kinds.DISCOVERY)] = "none"
    stop_after_first_open: Annotated[bool, Key("stopAfterFirstOpen", kinds.BOOL)] = False
    tcp: Annotated[Tcp, Key("tcp")] = Tcp()
    udp: Annotated[Udp, Key("udp")] = Udp()
    zgrab2: Annotated[Zgrab2, Key("zgrab2")] = Zgrab2()


# ── events ──────────────────────────────────────────────────────────────────────────────────


class Sink(Section, frozen=True, kw_only=True):
    """What all outputs have in common.

    ``filter`` maps a path into an event to the value it must have, None for any; empty passes
    everything. ``states`` are those shown besides open.
    """

    filter: Annotated[dict[str, FilterValue], Key("filter", kinds.FILTER)] = {}
    states: Annotated[tuple[str, ...], Key("states", kinds.STATES)] = ()


class TerminalInternal(Section, frozen=True, kw_only=True):
    channelsize: Annotated[int, Key("channelsize", kinds.COUNT_OR_ZERO)] = 1000


class Terminal(Sink, frozen=True, kw_only=True):
    """Lines on standard output."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = True
    format: Annotated[str, Key("format", kinds.Choice("auto", "text", "json"))] = "auto"
    internal: Annotated[TerminalInternal, Key("internal")] = TerminalInternal()


class JsonFileInternal(Section, frozen=True, kw_only=True):
    channelsize: Annotated[int, Key("channelsize", kinds.COUNT_OR_ZERO)] = 10000
    synctimer_s: Annotated[float, Key("synctimer", kinds.DURATION_OR_SECONDS)] = 10.0


class JsonFile(Sink, frozen=True, kw_only=True):
    """A file of one JSON object a line."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = True
    filename: Annotated[str, Key("filename", kinds.TEXT)] = "nray-output.json"
    overwrite_existing: Annotated[bool, Key("overwriteExisting", kinds.BOOL)] = False
    internal: Annotated[JsonFileInternal, Key("internal")] = JsonFileInternal()


class ElasticsearchInternal(Section, frozen=True, kw_only=True):
    indexname: Annotated[str, Key("indexname", kinds.TEXT)] = "nray"
    channelsize: Annotated[int, Key("channelsize", kinds.COUNT_OR_ZERO)] = 10000
    committimer_s: Annotated[float, Key("committimer", kinds.SECONDS)] = 3.0


class Elasticsearch(Sink, frozen=True, kw_only=True):
    """An index of Elasticsearch."""

    enabled: Annotated[bool, Key("enabled", kinds.BOOL)] = False
    server: Annotated[str, Key("server", kinds.TEXT)] = ""
    use_tls: Annotated[bool, Key("useTLS", kinds.BOOL)] = True
    port: Annotated[int, Key("port", kinds.PORT)] = 443
    internal: Annotated[ElasticsearchInternal, Key("internal")] = ElasticsearchInternal()


class Events(Section, frozen=True, kw_only=True):
    """Outputs; None where the file has no such section. Ask ``enabled`` of those that are there."""

    terminal: Annotated[Terminal | None, Key("terminal")] = None
    json_file: Annotated[JsonFile | None, Key("json-file")] = None
    elasticsearch: Annotated[Elasticsearch | None, Key("elasticsearch")] = None


class Config(Section, frozen=True, kw_only=True):
    """The whole file.

    ``references`` is no key: it holds, by path, the values that were written as references or as
    lists with some, so that they are written out that way again. An entry of a mapping stands
    there by path, dot and key.
    """

    debug: Annotated[bool, Key("debug", kinds.BOOL)] = False
    listen: Annotated[tuple[int, ...], Key("listen", kinds.PORTS_TO_LISTEN)] = (8601,)
    host: Annotated[str, Key("host", kinds.TEXT)] = "127.0.0.1"
    status_print_interval_s: Annotated[float, Key("statusPrintInterval", kinds.DURATION)] = 15.0
    pools: Annotated[int, Key("pools", kinds.POOLS)] = 1
    consider_client_pool_preference: Annotated[
        bool, Key("considerClientPoolPreference", kinds.BOOL)
    ] = True
    allow_multiple_nodes_per_host: Annotated[bool, Key("allowMultipleNodesPerHost", kinds.BOOL)] = (
        False
    )
    seed: Annotated[int | None, Key("seed", kinds.SEED)] = None
    ledger: Annotated[str, Key("ledger", kinds.TEXT)] = ""
    tls: Annotated[Tls, Key("TLS")] = Tls()
    internal: Annotated[Internal, Key("internal")] = Internal()
    targetgenerator: Annotated[TargetGenerator, Key("targetgenerator")] = TargetGenerator()
    scannerconfig: Annotated[ScannerConfig, Key("scannerconfig")] = ScannerConfig()
    events: Annotated[Events, Key("events")] = Events()
    references: dict[str, Scalar | tuple[Scalar, ...]] = {}


# ── the schema as data ──────────────────────────────────────────────────────────────────────


class Field(msgspec.Struct, frozen=True):
    """One attribute of a section. Exactly one of ``kind`` and ``section`` is set."""

    attribute: str
    key: str
    kind: Kind | None
    section: type[Section] | None
    default: Any


@cache
def fields(section: type[Section]) -> tuple[Field, ...]:
    """The attributes of a section, in the order of the file; ``enabled`` comes first."""
    hints = get_type_hints(section, include_extras=True)
    found = []
    for info in msgspec.structs.fields(section):
        if get_origin(hints[info.name]) is not Annotated:
            continue
        declared, key = get_args(hints[info.name])
        default = info.default if info.default is not msgspec.NODEFAULT else _made(info)
        found.append(Field(info.name, key.name, key.kind, _section(declared), default))
    return tuple(sorted(found, key=lambda field: (field.section is not None, _rank(field))))


def leaves(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Every key that has a value, as its full path (``TLS.enabled``) and its field."""
    for field in fields(section):
        if field.section is None:
            yield prefix + field.key, field
        else:
            yield from leaves(field.section, f"{prefix}{field.key}.")


def _made(info: msgspec.structs.FieldInfo) -> Any:
    assert info.default_factory is not msgspec.NODEFAULT
    return info.default_factory()


def _section(declared: Any) -> type[Section] | None:
    for candidate in (declared, *get_args(declared)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _rank(field: Field) -> int:
    """What says whether and what comes first; the rest keeps the order of its class."""
    return {"enabled": 0, "targets": 1, "targetFile": 2}.get(field.key, 3)
