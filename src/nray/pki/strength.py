"""How strong the key and the signature of a certificate must be, at least.

The library that judges peers checks the keys of issuers and the hash of signatures; the key of
the leaf it leaves to us, and OpenSSL's own security level is off for a peer's chain as soon as
a callback accepts it.
"""

from __future__ import annotations

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

#: Smallest RSA modulus and elliptic-curve field, bits: at least 112-bit security (NIST SP 800-57
#: part 1, table 2), and what the library demands of issuers.
RSA_BITS_MIN = 2048
CURVE_BITS_MIN = 256

WEAK_HASHES = (hashes.MD5, hashes.SHA1)


def key_weakness(certificate: x509.Certificate) -> str:
    """What is weak about the public key of a certificate: words to follow "its"; else empty.

    Raises:
        ValueError, UnsupportedAlgorithm: the key cannot be read.
    """
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size >= RSA_BITS_MIN:
            return ""
        return f"RSA key has {key.key_size} bits, at least {RSA_BITS_MIN} are needed"
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.key_size >= CURVE_BITS_MIN:
            return ""
        return f"key is on {key.curve.name}, at least {CURVE_BITS_MIN} bits are needed"
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return ""
    return f"key is of a kind that is not taken ({type(key).__name__})"


def signature_weakness(certificate: x509.Certificate) -> str:
    """What is weak about the signature on a certificate: words to follow "is"; else empty."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except exceptions.UnsupportedAlgorithm:
        oid = certificate.signature_algorithm_oid.dotted_string
        return f"signed in a way that is unknown ({oid})"
    if isinstance(algorithm, WEAK_HASHES):
        return f"signed with {algorithm.name.upper()}"
    return ""


def is_edwards_signed(certificate: x509.Certificate) -> bool:
    """Whether Ed25519 or Ed448 signed this certificate: sound, but the library refuses it."""
    return certificate.signature_algorithm_oid in (
        x509.SignatureAlgorithmOID.ED25519,
        x509.SignatureAlgorithmOID.ED448,
    )
