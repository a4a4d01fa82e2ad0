"""A person's signature under an act on a model: Ed25519 or ECDSA P-256, by `cryptography` alone.

What is signed is the line of `ledger.statement`; a key is named by the SHA-256 of its public
half (DER, SubjectPublicKeyInfo).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from bridge.errors import WrongUse

__all__ = ["Signer", "holds", "public_key", "signer"]

Public = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_KINDS = "an Ed25519 or ECDSA P-256 key"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key that was read; `key` is the digest of its public half."""

    key: str
    _private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    def sign(self, line: str) -> str:
        """Sign a line of ASCII; base64."""
        data = line.encode("ascii")
        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            value = self._private.sign(data)
        else:
            value = self._private.sign(data, ec.ECDSA(hashes.SHA256()))
        return base64.b64encode(value).decode()


def signer(private_pem: bytes) -> Signer:
    """Read a person's private key; raises WrongUse for what is none, or has a password."""
    try:
        key = serialization.load_pem_private_key(private_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise WrongUse("--key: this is no private key in PEM without a password") from None
    public = _of_kind(key.public_key())
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise WrongUse(f"--key: use {_KINDS}")
    return Signer(_digest(public), key)


def public_key(pem: bytes) -> tuple[str, str]:
    """Read a person's public key; returns (its digest, its PEM). Raises WrongUse."""
    found = _public(pem)
    canonical = found.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _digest(found), canonical.decode()


def holds(pem: bytes, line: str, signature: str) -> bool:
    """Whether this public key signed the line. Raises WrongUse for what is no key."""
    key = _public(pem)
    try:
        value, data = base64.b64decode(signature, validate=True), line.encode("ascii")
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(value, data)
        else:
            key.verify(value, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):  # of base64 or of text that is not ASCII
        return False
    return True


def _public(pem: bytes) -> Public:
    try:
        return _of_kind(serialization.load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm):
        raise WrongUse("this is no public key in PEM; ask the person for *.pub.pem") from None


def _of_kind(key: object) -> Public:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise WrongUse(f"a person signs with {_KINDS}; make one: openssl genpkey -algorithm ed25519")


def _digest(key: Public) -> str:
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()
