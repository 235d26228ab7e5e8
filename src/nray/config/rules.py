"""What keys demand of each other, what a scan needs, and what this version cannot do yet."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from nray.config import references
from nray.config.errors import ConfigError, Problem
from nray.config.kinds import Secret
from nray.config.nodes import Scalar
from nray.config.schema import Config, Section, Tls, fields
from nray.config.secret import MASK, SecretText


class Broken(msgspec.Struct, frozen=True):
    """A demand that is not met: ``key`` is to be mended ``because`` of what another key says."""

    key: str
    because: str
    seen: str
    right: str


def relations(config: Config) -> Iterator[Broken]:
    """The demands of keys on other keys that the configuration does not meet."""
    for key, because, value, what in _demands(config):
        if not value:
            yield Broken(
                key,
                because,
                f"missing, but {because} is {'given' if because == 'TLS.crl' else 'true'}",
                f"set it to {what}",
            )
    tls = config.tls
    if tls.allowed_nodes != Tls().allowed_nodes and not (tls.enabled and tls.force_client_auth):
        because = "TLS.forceClientAuth" if tls.enabled else "TLS.enabled"
        yield Broken(
            "TLS.allowedNodes",
            because,
            f"has no effect while {because} is false: whoever shows no certificate has no name",
            f"set {because}: true",
        )
    json_file = config.events.json_file
    if json_file is not None and json_file.enabled and not json_file.filename:
        yield Broken(
            "events.json-file.filename",
            "events.json-file",
            "empty",
            "write the name of a file, or remove the section",
        )


def _demands(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """Key, the key that asks for it, its value, and what belongs there; for the asking keys on."""
    tls = config.tls
    if tls.enabled:
        yield "TLS.cert", "TLS.enabled", tls.cert, "the server's certificate (a PEM file)"
        yield "TLS.key", "TLS.enabled", tls.key, "the certificate's private key (a PEM file)"
        if tls.force_client_auth:
            yield "TLS.CA", "TLS.forceClientAuth", tls.ca, "the authority of the nodes (PEM)"
        if tls.crl:
            yield "TLS.CA", "TLS.crl", tls.ca, "the authority that revokes certificates (PEM)"
    ldap = config.targetgenerator.ldap
    if ldap.enabled:
        where = "targetgenerator.ldap"
        yield f"{where}.ldapServer", f"{where}.enabled", ldap.ldap_server, "the server's name"
    elastic = config.events.elasticsearch
    if elastic is not None and elastic.enabled:
        where = "events.elasticsearch"
        yield f"{where}.server", f"{where}.enabled", elastic.server, "the server's name"


def require_work(config: Config, name: str = "configuration") -> None:
    """Raise unless the configuration says what to scan; ``name`` stands for the file.

    Raises:
        ConfigError: there are no targets or no ports, and which key to set.
    """
    standard = config.targetgenerator.standard
    generators = [
        generator
        for generator in (
            standard,
            config.targetgenerator.certificatetransparency,
            config.targetgenerator.ldap,
        )
        if generator.enabled
    ]

    def missing(key: str, seen: str, right: str) -> ConfigError:
        return ConfigError(Problem(name, 0, f"targetgenerator.{key}", seen, right))

    if not generators:
        raise missing("standard.enabled", "no source of targets is on", "set it to true")
    if standard.enabled and not (standard.targets or standard.target_file):
        if len(generators) == 1:
            raise missing(
                "standard.targets",
                "there is nothing to scan",
                'list targets there, ["192.0.2.0/28"], or name a file of them in targetFile',
            )
        generators.remove(standard)
    if not any(generator.tcp_ports or generator.udp_ports for generator in generators):
        raise missing("standard.tcpports", "there are no ports to scan", "set it to [top25], say")


def unsupported(config: Config) -> list[str]:
    """What the configuration asks for and this version cannot do, a sentence each."""
    asked = []
    if config.targetgenerator.certificatetransparency.enabled:
        asked.append(
            "targetgenerator.certificatetransparency.enabled: targets from certificate"
            " transparency are not in this version"
        )
    if config.targetgenerator.ldap.enabled:
        asked.append("targetgenerator.ldap.enabled: targets from LDAP are not in this version")
    if config.scannerconfig.zgrab2.enabled_modules:
        modules = ", ".join(config.scannerconfig.zgrab2.enabled_modules)
        asked.append(
            f"scannerconfig.zgrab2.enabledModules: modules ({modules}) are not in this version"
        )
    if config.events.elasticsearch is not None and config.events.elasticsearch.enabled:
        asked.append("events.elasticsearch.enabled: output to Elasticsearch is not in this version")
    return asked


def exposed(config: Config, name: str) -> list[str]:
    """Secrets that stand in files which all users can read, a sentence each.

    Args:
        name: the configuration's file. Where there is none, nothing is said of it.
    """
    found = []
    for path, secret in _secrets(config):
        given = config.references.get(path)
        file = Path(name)
        if isinstance(given, Scalar) and given.reference is not None:
            if given.reference.tag != references.FILE:
                continue
            file = references.path_of(given.reference, file.parent)
        try:
            mode = os.stat(file).st_mode
        except (OSError, ValueError):
            continue
        if secret and stat.S_ISREG(mode) and mode & stat.S_IROTH:
            readable = f"all users can read it in {file} (mode {stat.S_IMODE(mode):04o})"
            found.append(f"{path}: {readable}; chmod 600 {file}")
    return found


def _secrets(section: Section, prefix: str = "") -> Iterator[tuple[str, SecretText]]:
    """Every secret with its path, empty ones too."""
    for field in fields(type(section)):
        value = getattr(section, field.attribute)
        if isinstance(field.kind, Secret):
            yield prefix + field.key, value
        elif isinstance(value, Section):
            yield from _secrets(value, f"{prefix}{field.key}.")


def warnings(config: Config) -> list[str]:
    """What is allowed and most likely not meant, a sentence each; `unsupported` is among it."""
    found = unsupported(config)
    try:
        require_work(config)
    except ConfigError as error:
        problem = error.problems[0]
        found.append(f"{problem.key}: {problem.seen}; {problem.right}")
    outputs = (config.events.terminal, config.events.json_file, config.events.elasticsearch)
    if not any(output is not None and output.enabled for output in outputs):
        found.append("events: no output is on, so results go nowhere; add terminal: under events:")
    if not config.tls.enabled:
        if config.tls.force_client_auth:
            found.append("TLS.forceClientAuth: has no effect while TLS.enabled is false")
        if not _is_loopback(config.host):
            found.append("TLS.enabled: false, so anyone who reaches the port can be a node")
    for path, secret in _secrets(config):
        if secret.reveal() == MASK:
            found.append(f"{path}: the mask of `config show`, not a password")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"
