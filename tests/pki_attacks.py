"""The table of attacks as data: what a peer shows, who judges it, and what is to come of it.

Each case is a function that makes a chain, and says at which ends it is judged (as a server's
certificate by a node, as a node's by a server), whether it is good, and if not, the reason. It is
driven three ways: against the judge alone (`test_pki_verify`), between two ends of ours over
sockets (`test_pki_attacks`), and by OpenSSL's own programs (`test_pki_foreign`).

Nothing is made before it is asked for, and everything once.
"""

from __future__ import annotations

import datetime
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import pki_lab as lab
from nray.pki.revocation import RevocationList, Revocations
from nray.server.complaints import Complaints
from nray.server.door import Guest, Lobby

NAME = "localhost"
G = lab.GUIDE


@dataclass(frozen=True)
class Shown:
    """What a peer shows and what it is judged by."""

    leaf: lab.Made
    trust: list[lab.Made]
    others: list[lab.Made] = field(default_factory=list)
    name: str = NAME
    now: datetime.datetime = lab.NOW
    #: Lists of revoked certificates, and the authority that signed each.
    lists: list[tuple[lab.Made, x509.CertificateRevocationList]] = field(default_factory=list)
    #: Patterns of names that a server takes.
    allowed: list[str] = field(default_factory=lambda: ["*"])

    @property
    def revocations(self) -> Revocations | None:
        found = [
            RevocationList(issuer.cert, frozenset(each.serial_number for each in crl), crl)
            for issuer, crl in self.lists
        ]
        return Revocations("crl.pem", found) if found else None


@dataclass(frozen=True)
class Case:
    title: str
    make: Callable[[], Shown]
    reason: str | None  # None: accepted
    ends: str = "sc"  # s: judged as a server's certificate, c: as a node's
    detail: str = ""  # stands in the detail of the refusal


CASES: list[Case] = []


def case(title: str, reason: str | None = None, ends: str = "sc", detail: str = "") -> Callable:
    def add(make: Callable[[], Shown]) -> Callable[[], Shown]:
        CASES.append(Case(title, functools.cache(make), reason, ends, detail))
        return make

    return add


def guest_on(stream: trio.abc.Stream) -> Guest:
    """A line at a server's door, alone in its lobby."""
    return Lobby(Complaints()).enter(stream, lambda: None)


@functools.cache
def guide_ca() -> lab.Made:
    """As cfssl makes it: RSA, no identifier of the issuer."""
    return lab.make_ca(G, key=lab.rsa_key(0))


@functools.cache
def other_ca() -> lab.Made:
    """Another authority of the very same subject."""
    return lab.make_ca(G, key=lab.rsa_key(1))


@functools.cache
def root() -> lab.Made:
    return lab.make_ca(lab.cn("root"))


def guide_leaf(issuer: lab.Made | None = None, **odd: object) -> lab.Made:
    """A leaf of the guide: subject equals issuer, no AKI, both usages."""
    return lab.make(G, issuer or guide_ca(), **{"aki": False, "san": lab.dns(NAME), **odd})


def leaf(issuer: lab.Made | None = None, **odd: object) -> lab.Made:
    """A leaf of an ordinary PKI."""
    return lab.make(lab.cn("leaf"), issuer or root(), **{"san": lab.dns(NAME), **odd})


# ── accepted ────────────────────────────────────────────────────────────────────────────────


@case("guide server")
def _() -> Shown:
    return Shown(guide_leaf(), [guide_ca()])


@case("guide node: no SAN", ends="c")
def _() -> Shown:
    return Shown(guide_leaf(san=None), [guide_ca()])


@case("guide with its authority and itself sent along")
def _() -> Shown:
    shown = guide_leaf()
    return Shown(shown, [guide_ca()], [shown, guide_ca()])


@case("EC, all one subject, no AKI")
def _() -> Shown:
    ca = lab.make_ca(G)
    return Shown(guide_leaf(ca), [ca])


@case("P-384")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("384"), key=lab.ec_key(ec.SECP384R1()))
    return Shown(leaf(ca, key=lab.ec_key(ec.SECP384R1())), [ca])


@case("ordinary PKI, EC")
def _() -> Shown:
    return Shown(leaf(), [root()])


@case("Ed25519 leaf under an RSA authority")
def _() -> Shown:
    return Shown(guide_leaf(key=ed25519.Ed25519PrivateKey.generate()), [guide_ca()])


@case("extendedKeyUsage absent")
def _() -> Shown:
    return Shown(leaf(eku=None), [root()])


@case("keyUsage absent on the leaf")
def _() -> Shown:
    return Shown(leaf(key_usage=None), [root()])


@case("serverAuth only", ends="s")
def _() -> Shown:
    return Shown(leaf(eku=[lab.SERVER_AUTH]), [root()])


@case("clientAuth only", ends="c")
def _() -> Shown:
    return Shown(leaf(eku=[lab.CLIENT_AUTH]), [root()])


@case("IPv4 SAN", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.ip("127.0.0.1")), [root()], name="127.0.0.1")


@case("IPv6 SAN, dialled with zone and brackets", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.ip("fe80::1")), [root()], name="[fe80::1%eth0]")


@case("wildcard for one label", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("*.ex.org")), [root()], name="a.ex.org")


@case("case of the name, final dot", ends="s")
def _() -> Shown:
    return Shown(leaf(), [root()], name="LOCALHOST.")


@case("one of many names", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("a.org", NAME, "b.org")), [root()])


@case("sub-authority sent along")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root())
    return Shown(leaf(sub), [root()], [sub])


@case("sub-authority of the same subject")
def _() -> Shown:
    sub = lab.make_ca(G, guide_ca(), aki=False)
    return Shown(guide_leaf(sub), [guide_ca()], [sub])


def _deep(authorities: int) -> Shown:
    chain = [root()]
    for number in range(authorities):
        chain.append(lab.make_ca(lab.cn(f"sub {number}"), chain[-1]))
    return Shown(leaf(chain[-1]), [root()], chain[1:])


@case("three authorities between root and leaf")
def _() -> Shown:
    return _deep(3)


@case("pathlen:0 root, direct leaf")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("r0"), pathlen=0)
    return Shown(leaf(ca), [ca])


@case("only the sub-authority is trusted")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root())
    return Shown(leaf(sub), [sub])


@case("two authorities of one subject, ours first")
def _() -> Shown:
    return Shown(guide_leaf(), [guide_ca(), other_ca()])


@case("two authorities of one subject, ours last")
def _() -> Shown:
    return Shown(guide_leaf(), [other_ca(), guide_ca()])


@case("authority without keyUsage")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("req -x509"), key_usage=None)
    return Shown(leaf(ca), [ca])


@case("the leaf itself in the trust file (a pin)")
def _() -> Shown:
    pinned = leaf()
    return Shown(pinned, [pinned])


@case("on the last second of its time")
def _() -> Shown:
    return Shown(leaf(end=lab.NOW), [root()])


# ── issued by nobody we know ────────────────────────────────────────────────────────────────


@case("self-signed, same subject", "unknown-issuer", detail="itself")
def _() -> Shown:
    return Shown(lab.make(G, san=lab.dns(NAME)), [guide_ca()])


@case("self-signed, same subject, the real authority appended", "unknown-issuer")
def _() -> Shown:
    return Shown(lab.make(G, san=lab.dns(NAME)), [guide_ca()], [guide_ca()])


@case("issued by another authority of the same subject", "unknown-issuer", detail="not sign it")
def _() -> Shown:
    return Shown(guide_leaf(other_ca()), [guide_ca()])


@case("the same, its root sent along", "unknown-issuer")
def _() -> Shown:
    return Shown(guide_leaf(other_ca()), [guide_ca()], [other_ca()])


@case("the same, with the AKI of the real one", "unknown-issuer")
def _() -> Shown:
    return Shown(guide_leaf(other_ca(), aki=guide_ca().cert), [guide_ca()], [other_ca()])


@case("the same, no SAN, as of the guide's node", "unknown-issuer", ends="c")
def _() -> Shown:
    return Shown(guide_leaf(other_ca(), san=None), [guide_ca()])


@case("neither of two authorities", "unknown-issuer")
def _() -> Shown:
    third = lab.make_ca(G)
    return Shown(guide_leaf(third), [guide_ca(), other_ca()])


@case("sub-authority missing from the chain", "unknown-issuer", detail="no certificate that leads")
def _() -> Shown:
    return Shown(leaf(lab.make_ca(lab.cn("sub"), root())), [root()])


@case("sent chain leads nowhere", "unknown-issuer", detail="does not lead")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), lab.make_ca(lab.cn("stranger")))
    return Shown(leaf(sub), [root()], [sub])


@case("nobody is trusted", "unknown-issuer")
def _() -> Shown:
    return Shown(leaf(), [])


@case("signature cut off a real one", "unknown-issuer")
def _() -> Shown:
    good = leaf()
    data = bytearray(good.cert.public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    return Shown(lab.Made(x509.load_der_x509_certificate(bytes(data)), good.key), [root()])


@case("more authorities between root and leaf than anybody needs", "unknown-issuer")
def _() -> Shown:
    return _deep(5)


@case("chain bomb: 40 authorities of one key and the trusted subject", "unknown-issuer")
def _() -> Shown:
    key = lab.ec_key()
    bomb = [lab.make_ca(G, lab.Made(other_ca().cert, key), key=key) for _ in range(40)]
    return Shown(guide_leaf(lab.Made(bomb[0].cert, key)), [guide_ca()], bomb)


@case("60 junk certificates beside an unknown issuer", "unknown-issuer")
def _() -> Shown:
    junk = [lab.make_ca(lab.cn(f"junk {number}")) for number in range(60)]
    return Shown(guide_leaf(other_ca()), [guide_ca()], junk)


# ── time ────────────────────────────────────────────────────────────────────────────────────


@case("expired", "expired", detail="2026-05-31")
def _() -> Shown:
    return Shown(leaf(end=lab.NOW - lab.DAY), [root()])


@case("guide, expired", "expired")
def _() -> Shown:
    return Shown(guide_leaf(end=lab.NOW - lab.DAY), [guide_ca()])


@case("expired one second ago", "expired")
def _() -> Shown:
    return Shown(leaf(end=lab.NOW), [root()], now=lab.NOW + datetime.timedelta(seconds=1))


@case("not yet valid", "not-yet-valid", detail="clock")
def _() -> Shown:
    return Shown(leaf(begin=lab.NOW + lab.DAY), [root()])


@case("authority expired", "expired", detail="its issuer")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("old"), end=lab.NOW - lab.DAY)
    return Shown(leaf(ca), [ca])


@case("pinned leaf, expired", "expired")
def _() -> Shown:
    pinned = leaf(end=lab.NOW - lab.DAY)
    return Shown(pinned, [pinned])


# ── use ─────────────────────────────────────────────────────────────────────────────────────


@case("a leaf signs a leaf (the guide's server is the attacker)", "wrong-use")
def _() -> Shown:
    signer = guide_leaf()
    return Shown(guide_leaf(signer), [guide_ca()], [signer])


@case("the same with distinct names", "wrong-use", detail="no authority")
def _() -> Shown:
    signer = lab.make(lab.cn("signer"), root(), san=lab.dns("signer"))
    return Shown(leaf(signer), [root()], [signer])


@case("the same, the signing leaf in the trust file", "wrong-use")
def _() -> Shown:
    signer = guide_leaf()
    return Shown(guide_leaf(signer), [guide_ca(), signer], [signer])


@case("only clientAuth, posing as a server", "wrong-use", ends="s", detail="serverAuth")
def _() -> Shown:
    return Shown(leaf(eku=[lab.CLIENT_AUTH]), [root()])


@case("only serverAuth, posing as a node", "wrong-use", ends="c", detail="clientAuth")
def _() -> Shown:
    return Shown(leaf(eku=[lab.SERVER_AUTH]), [root()])


@case("codeSigning", "wrong-use")
def _() -> Shown:
    return Shown(leaf(eku=[lab.CODE_SIGNING]), [root()])


@case("leaf with keyCertSign", "wrong-use")
def _() -> Shown:
    return Shown(leaf(key_usage=lab.usage("digital_signature", "key_cert_sign")), [root()])


@case("leaf without digitalSignature", "wrong-use")
def _() -> Shown:
    return Shown(leaf(key_usage=lab.usage("key_encipherment")), [root()])


@case("an authority's certificate as leaf", "wrong-use")
def _() -> Shown:
    return Shown(lab.make_ca(lab.cn("sub"), root(), san=lab.dns(NAME)), [root()])


@case("self-signed authority as leaf, same subject", "unknown-issuer")
def _() -> Shown:
    return Shown(lab.make_ca(G, san=lab.dns(NAME)), [guide_ca()], [guide_ca()])


@case("the trusted authority itself as leaf", "wrong-use")
def _() -> Shown:
    return Shown(guide_ca(), [guide_ca()])


@case("pathlen exceeded at the root", "wrong-use", detail="fewer")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("r0"), pathlen=0)
    sub = lab.make_ca(lab.cn("sub"), ca)
    return Shown(leaf(sub), [ca], [sub])


@case("pathlen exceeded at the sub-authority", "wrong-use")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root(), pathlen=0)
    subsub = lab.make_ca(lab.cn("subsub"), sub)
    return Shown(leaf(subsub), [root()], [sub, subsub])


@case(
    "pathlen:0 root with a sub-authority of its own subject (stricter than RFC 5280)", "wrong-use"
)
def _() -> Shown:
    ca = lab.make_ca(G, pathlen=0)
    sub = lab.make_ca(G, ca, aki=False)
    return Shown(guide_leaf(sub), [ca], [sub])


@case("authority without keyCertSign", "wrong-use", detail="keyUsage")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("crl only"), key_usage=lab.usage("crl_sign"))
    return Shown(leaf(ca), [ca])


@case("authority without basicConstraints", "wrong-use")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("nothing"), ca=None)
    return Shown(leaf(ca), [ca])


@case("sub-authority made for code signing alone", "wrong-use")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root(), eku=[lab.CODE_SIGNING])
    return Shown(leaf(sub), [root()], [sub])


# ── name ────────────────────────────────────────────────────────────────────────────────────


@case("another name", "wrong-name", ends="s", detail="DNS:a.org, IP:127.0.0.1, not for localhost")
def _() -> Shown:
    return Shown(leaf(san=[*lab.dns("a.org"), *lab.ip("127.0.0.1")]), [root()])


@case("address dialled, only a DNS name", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(), [root()], name="127.0.0.1")


@case("address as text in a DNS name", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("127.0.0.1")), [root()], name="127.0.0.1")


@case("name only in the common name", "wrong-name", ends="s", detail="no names at all")
def _() -> Shown:
    return Shown(lab.make(lab.cn(NAME), root()), [root()])


@case("name in the common name, another among the alternatives", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(lab.make(lab.cn(NAME), root(), san=lab.dns("other.org")), [root()])


@case("wildcard over two labels", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("*.ex.org")), [root()], name="a.b.ex.org")


@case("wildcard for the bare domain", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("*.ex.org")), [root()], name="ex.org")


@case("the guide's node poses as server", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(guide_leaf(san=None), [guide_ca()])


@case("pinned leaf, another name", "wrong-name", ends="s")
def _() -> Shown:
    pinned = leaf(san=lab.dns("a.org"))
    return Shown(pinned, [pinned])


@case("outside the name constraints of its issuer", "wrong-name", detail="nameConstraints")
def _() -> Shown:
    constraints = x509.NameConstraints(permitted_subtrees=lab.dns("ex.org"), excluded_subtrees=None)
    ca = lab.make_ca(lab.cn("only ex.org"), extra=[(constraints, True)])
    return Shown(leaf(ca), [ca])


# ── strength ────────────────────────────────────────────────────────────────────────────────


@functools.cache
def small_key(bits: int) -> lab.rsa.RSAPrivateKey:
    return lab.rsa.generate_private_key(65537, bits)


@case("RSA 1024 leaf", "weak", detail="1024")
def _() -> Shown:
    return Shown(leaf(key=small_key(1024)), [root()])


@case("RSA 512 leaf", "weak", detail="512")
def _() -> Shown:
    return Shown(leaf(public_key=lab.public_rsa(512)), [root()])


@case("RSA 2047 leaf", "weak")
def _() -> Shown:
    return Shown(leaf(key=small_key(2047)), [root()])


@case("RSA 1024 leaf, pinned", "weak")
def _() -> Shown:
    pinned = leaf(key=small_key(1024))
    return Shown(pinned, [pinned])


@case("P-224 leaf", "weak", detail="secp224r1")
def _() -> Shown:
    return Shown(leaf(key=lab.ec_key(ec.SECP224R1())), [root()])


@case("RSA 1024 authority", "weak", detail="its issuer")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("small"), key=small_key(1024))
    return Shown(leaf(ca), [ca])


def _by_openssl(digest: str, *, version_3: bool = True) -> Shown:
    """openssl knows no other time than today, so authority and judgement keep to that."""
    today = datetime.datetime.now(datetime.UTC)
    ca = lab.make_ca(G, key=lab.rsa_key(0), begin=today - lab.DAY, end=today + lab.DAY)
    extensions = (
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        f"extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:{NAME}\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        shown = lab.signed_by_openssl(
            Path(directory),
            ca,
            "/CN=by openssl",
            digest=digest,
            extensions=extensions if version_3 else None,
        )
    return Shown(shown, [ca], now=today + datetime.timedelta(minutes=1))


@case("signed with SHA-256 by openssl (the control of the next ones)")
def _() -> Shown:
    return _by_openssl("sha256")


@case("signed with SHA-1", "weak", detail="SHA1")
def _() -> Shown:
    return _by_openssl("sha1")


@case("signed with MD5", "weak", detail="MD5")
def _() -> Shown:
    return _by_openssl("md5")


# ── form ────────────────────────────────────────────────────────────────────────────────────


@case("X.509 v1", "malformed", detail="v1")
def _() -> Shown:
    return _by_openssl("sha256", version_3=False)


@case("Ed25519 authority", "malformed", detail="Ed25519")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("ed"), key=ed25519.Ed25519PrivateKey.generate())
    return Shown(leaf(ca), [ca])


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")


@case("unknown critical extension", "malformed", detail="1.2.3.4.5")
def _() -> Shown:
    return Shown(leaf(extra=[(UNKNOWN, True)]), [root()])


@case("unknown critical extension of the issuer", "malformed", detail="1.2.3.4.5")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("odd"), extra=[(UNKNOWN, True)])
    return Shown(leaf(ca), [ca])


@case("unknown extension that is not critical")
def _() -> Shown:
    return Shown(leaf(extra=[(UNKNOWN, False)]), [root()])


@case("extension that does not parse", "malformed", detail="cannot be read")
def _() -> Shown:
    oid = x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    broken = x509.UnrecognizedExtension(oid, b"\x30\x82\xff")
    return Shown(leaf(san=None, extra=[(broken, False)]), [root()])


# ── revoked ─────────────────────────────────────────────────────────────────────────────────


@case("revoked", "revoked", detail="was revoked on 2026-05-31")
def _() -> Shown:
    shown = leaf()
    return Shown(shown, [root()], lists=[(root(), lab.make_crl(root(), shown))])


@case("guide, revoked", "revoked")
def _() -> Shown:
    shown = guide_leaf()
    return Shown(shown, [guide_ca()], lists=[(guide_ca(), lab.make_crl(guide_ca(), shown))])


@case("revoked sub-authority", "revoked", detail="its issuer")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root())
    return Shown(leaf(sub), [root()], [sub], lists=[(root(), lab.make_crl(root(), sub))])


@case("revoked sub-authority, itself trusted", "revoked")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root())
    return Shown(leaf(sub), [sub, root()], lists=[(root(), lab.make_crl(root(), sub))])


@case("revoked by a sub-authority", "revoked")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root())
    shown = leaf(sub)
    return Shown(shown, [root()], [sub], lists=[(sub, lab.make_crl(sub, shown))])


@case("revoked, by a list that is overdue", "revoked")
def _() -> Shown:
    shown = leaf()
    old = lab.make_crl(root(), shown, begin=lab.NOW - 9 * lab.DAY, end=lab.NOW - 2 * lab.DAY)
    return Shown(shown, [root()], lists=[(root(), old)])


@case("another one of the same authority is revoked")
def _() -> Shown:
    return Shown(leaf(), [root()], lists=[(root(), lab.make_crl(root(), leaf()))])


@case("its serial is revoked by another authority of the same subject")
def _() -> Shown:
    shown = guide_leaf()
    crl = lab.make_crl(other_ca(), shown)
    return Shown(shown, [guide_ca(), other_ca()], lists=[(other_ca(), crl)])


# ── names that a server takes ───────────────────────────────────────────────────────────────


@case("a name that is not allowed", "not-allowed", ends="c", detail="localhost matches no pattern")
def _() -> Shown:
    return Shown(leaf(), [root()], allowed=["*.example.org", "local"])


@case("a name that is allowed", ends="c")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("N7.example.org")), [root()], allowed=["*.example.org"])


@case("an allowed name only in the common name", "not-allowed", ends="c")
def _() -> Shown:
    shown = lab.make(lab.cn("n7.example.org"), root(), san=lab.dns("evil.org"))
    return Shown(shown, [root()], allowed=["*.example.org"])


@case("an allowed name only among the further ones", "not-allowed", ends="c")
def _() -> Shown:
    shown = leaf(san=lab.dns("evil.org", "n7.example.org"))
    return Shown(shown, [root()], allowed=["*.example.org"])


@case("an allowed name with a NUL and more behind it", "not-allowed", ends="c")
def _() -> Shown:
    shown = leaf(san=lab.dns("n7.example.org\0.evil.org"))
    return Shown(shown, [root()], allowed=["*.example.org"])


@case("an allowed name of an unknown issuer", "unknown-issuer", ends="c")
def _() -> Shown:
    return Shown(guide_leaf(other_ca()), [guide_ca()], allowed=[NAME])


# ── names made to be misread ────────────────────────────────────────────────────────────────


@case("NUL in the name", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns(NAME + "\0.evil.org")), [root()])


@case("NUL in the common name", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(lab.make(lab.cn(NAME + "\0.evil.org"), root()), [root()])


@case("capitals in the certificate", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("LocalHost")), [root()])


@case("final dot in the certificate", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("localhost.")), [root()])


@case("wildcard alone", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("*")), [root()])


@case("wildcard within a label", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("l*t")), [root()])


@case("wildcard in the second label", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("a.*.org")), [root()], name="a.ex.org")


@case("wildcard for an address", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.dns("*.0.0.1")), [root()], name="127.0.0.1")


@case("the address written as IPv6", "wrong-name", ends="s")
def _() -> Shown:
    return Shown(leaf(san=lab.ip("::ffff:127.0.0.1")), [root()], name="127.0.0.1")


@case("the name as URI, mail and directory name", "wrong-name", ends="s")
def _() -> Shown:
    san = [
        x509.UniformResourceIdentifier(f"https://{NAME}/"),
        x509.RFC822Name(f"a@{NAME}"),
        x509.DirectoryName(lab.cn(NAME)),
    ]
    return Shown(leaf(san=san), [root()])


@case("empty subject, names only as alternatives")
def _() -> Shown:
    return Shown(lab.make(x509.Name([]), root(), san=lab.dns(NAME)), [root()])


# ── more of form, time and use ──────────────────────────────────────────────────────────────


def resigned(made: lab.Made, issuer: lab.Made, old: bytes, new: bytes) -> lab.Made:
    """The same with some bytes changed and a good signature on it: what no library makes."""
    body = made.cert.tbs_certificate_bytes
    assert len(old) == len(new)
    assert body.count(old) == 1
    body = body.replace(old, new)
    signature = issuer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    whole = _der(0x30, body + ecdsa_with_sha256 + _der(3, b"\0" + signature))
    return lab.Made(x509.load_der_x509_certificate(whole), made.key)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 128 | len(length)]) + length + content


@case("resigned without a change that matters (the control of the next ones)")
def _() -> Shown:
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x05\x00")
    made = leaf(extra=[(extra, False)])
    return Shown(resigned(made, root(), b"\x55\x1d\x63", b"\x55\x1d\x62"), [root()])


@case("two extensions of alternative names", "malformed", detail="cannot be read")
def _() -> Shown:
    names = x509.SubjectAlternativeName(lab.dns(NAME)).public_bytes()
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), names)
    made = leaf(san=lab.dns("evil.org"), extra=[(extra, False)])
    return Shown(resigned(made, root(), b"\x55\x1d\x63", b"\x55\x1d\x11"), [root()])


@case("two basicConstraints", "malformed", detail="cannot be read")
def _() -> Shown:
    value = x509.BasicConstraints(True, None).public_bytes()
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), value)
    made = leaf(extra=[(extra, True)])
    return Shown(resigned(made, root(), b"\x55\x1d\x63", b"\x55\x1d\x13"), [root()])


@case("sub-authority with two basicConstraints", "malformed")
def _() -> Shown:
    value = x509.BasicConstraints(True, None).public_bytes()
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), value)
    made = lab.make_ca(lab.cn("sub"), root(), extra=[(extra, True)])
    sub = resigned(made, root(), b"\x55\x1d\x63", b"\x55\x1d\x13")
    return Shown(leaf(sub), [root()], [sub])


@case("sub-authority expired", "expired", detail="its issuer")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root(), end=lab.NOW - lab.DAY)
    return Shown(leaf(sub), [root()], [sub])


@case("authority not yet valid", "not-yet-valid")
def _() -> Shown:
    ca = lab.make_ca(lab.cn("tomorrow"), begin=lab.NOW + lab.DAY)
    return Shown(leaf(ca), [ca])


@case("a self-signed leaf in the trust file (a pin)")
def _() -> Shown:
    pinned = lab.make(lab.cn("pin"), san=lab.dns(NAME))
    return Shown(pinned, [pinned])


@case("another leaf of a pinned one's name, signed by the same key", "wrong-use")
def _() -> Shown:
    pinned = leaf()
    twin = lab.make(lab.cn("leaf"), key=pinned.key, san=lab.dns(NAME))
    return Shown(twin, [pinned])


@case("anyExtendedKeyUsage alone on the leaf", "wrong-use")
def _() -> Shown:
    return Shown(leaf(eku=[x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), [root()])


@case("sub-authority for servers alone, a node's leaf", "wrong-use", ends="c")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root(), eku=[lab.SERVER_AUTH])
    return Shown(leaf(sub), [root()], [sub])


@case("sub-authority for nodes alone, a server's leaf", "wrong-use", ends="s")
def _() -> Shown:
    sub = lab.make_ca(lab.cn("sub"), root(), eku=[lab.CLIENT_AUTH])
    return Shown(leaf(sub), [root()], [sub])
