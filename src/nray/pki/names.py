"""Names: what a user dials, what a certificate says, and how either may be printed.

A name in a certificate may hold anything, also line feeds and terminal escapes, and it is shown
before its certificate is verified: `printable` stands between it and every message.
"""

from __future__ import annotations

import hashlib
import ipaddress

import idna
from cryptography import x509

from nray.pki.errors import PkiError

#: Longest piece of foreign text in a message, characters: a line or two of a terminal.
SHOWN_CHARACTERS_MAX = 160

#: How many alternative names a message lists before it says "and N more".
SHOWN_NAMES_MAX = 8

#: Longest DNS name, characters (RFC 1035, section 2.3.4).
DNS_CHARACTERS_MAX = 253

_LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")

_HINT = "give the name in the server's certificate with --tls-server-SAN"


def peer_name(text: str) -> x509.DNSName | x509.IPAddress:
    """The name to look for in a server's certificate, from an address or a DNS name.

    Brackets and the zone of an IPv6 address and the final dot of a name are dropped, other
    scripts are IDNA-encoded (UTS 46, as trio's resolver does).

    Raises:
        PkiError: the text is no name that a certificate could hold (a port on it, an
            underscore, an empty label, ...).
    """
    address = _address(text)
    if address is not None:
        return x509.IPAddress(address)
    return x509.DNSName(_dns_name(text))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        # The zone says which link to use, and is no part of what is certified.
        return ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return None


def _dns_name(text: str) -> str:
    name = text.removesuffix(".")
    try:
        ascii_name = (
            name.lower() if name.isascii() else idna.encode(name, uts46=True).decode("ascii")
        )
    except (idna.IDNAError, UnicodeError) as error:
        raise _no_name(text, str(error)) from error
    if not ascii_name:
        raise _no_name(text, "it is empty")
    if ":" in ascii_name:
        raise _no_name(text, "a colon belongs to an IPv6 address; a port is given apart")
    if len(ascii_name) > DNS_CHARACTERS_MAX:
        raise _no_name(text, f"it is longer than {DNS_CHARACTERS_MAX} characters")
    labels = ascii_name.split(".")
    for label in labels:
        _check_label(text, label)
    if labels[-1].isdigit():
        raise _no_name(text, "it ends in a number and is no complete address")
    return ascii_name


def _check_label(text: str, label: str) -> None:
    if not label:
        raise _no_name(text, "a part between two dots is empty")
    if len(label) > 63:
        raise _no_name(text, "a part of it is longer than 63 characters")
    if label.startswith("-") or label.endswith("-"):
        raise _no_name(text, "a part of it begins or ends with a hyphen")
    strange = sorted(set(label) - _LABEL_CHARACTERS)
    if strange:
        raise _no_name(text, f"{printable(strange[0])!r} cannot stand in the name of a host")


def _no_name(text: str, why: str) -> PkiError:
    shown = printable(text)
    return PkiError(
        f'"{shown}" is no name that a certificate can be checked for: {printable(why)}', _HINT
    )


def printable(text: str) -> str:
    """`text` with all that could disturb a terminal or a log line escaped, cut to
    `SHOWN_CHARACTERS_MAX`."""
    if len(text) > SHOWN_CHARACTERS_MAX:
        text = text[: SHOWN_CHARACTERS_MAX - 1] + "…"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def shown_name(name: x509.Name) -> str:
    """A subject or issuer as one quoted, printable piece of text."""
    text = printable(name.rfc4514_string())
    return f'"{text}"' if text else "(an empty name)"


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The subject alternative names in the order of the certificate; empty if it has none.

    Raises:
        ValueError: the extensions cannot be read (also other types, for broken certificates).
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(extension.value)


def shown_alternative_names(certificate: x509.Certificate) -> str:
    """The alternative names as a printable list, such as ``DNS:localhost, IP:127.0.0.1``."""
    names = alternative_names(certificate)
    if not names:
        return "no names at all"
    shown = [_shown_general_name(name) for name in names[:SHOWN_NAMES_MAX]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _shown_general_name(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DNSName):
        return "DNS:" + printable(name.value)
    if isinstance(name, x509.IPAddress):
        return f"IP:{name.value}"
    if isinstance(name, x509.UniformResourceIdentifier):
        return "URI:" + printable(name.value)
    if isinstance(name, x509.RFC822Name):
        return "email:" + printable(name.value)
    return type(name).__name__


def identity_of(certificate: x509.Certificate) -> str:
    """What to call the holder of a certificate: its first DNS name (in lower case), else URI,
    else mail address, else IP address, else its common name, else its whole subject, else its
    serial number. Empty ones are passed over.

    Printable, of bounded length, and different for different names (`_told_apart`): leases
    belong to an identity, so no name may be made to look like another one.
    """
    names = alternative_names(certificate)
    for name in names:
        if isinstance(name, x509.DNSName) and name.value:
            return _told_apart(name.value.lower())
    for kind in (x509.UniformResourceIdentifier, x509.RFC822Name):
        for name in names:
            if isinstance(name, kind) and name.value:
                return _told_apart(name.value)
    for name in names:
        if isinstance(name, x509.IPAddress):
            return str(name.value)
    for attribute in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME):
        if attribute.value:
            return _told_apart(str(attribute.value))
    subject = certificate.subject.rfc4514_string()
    return _told_apart(subject) if subject else f"serial {certificate.serial_number:x}"


def _told_apart(text: str) -> str:
    """As `printable`, but no two texts come out alike: backslashes are doubled, and what is cut
    ends in a digest, after an escape that nothing else makes."""
    if len(text) <= SHOWN_CHARACTERS_MAX:
        return _escaped(text)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{_escaped(text[: SHOWN_CHARACTERS_MAX // 2])}\\…{digest}"


def _escaped(text: str) -> str:
    return "".join("\\\\" if character == "\\" else printable(character) for character in text)
