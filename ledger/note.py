r"""A signed text: signed-note (C2SP), with the keys that sign it. Pure but for the mathematics.

    <text, ending in \n>
    \n
    — <name> <base64(key id[4] ‖ signature)>\n          one or more

    key id = SHA-256(name ‖ \n ‖ type ‖ public key)[:4]
    vkey   = <name>+<key id, hex>+<base64(type ‖ public key)>

Types: 01 Ed25519 over the text; 04 and 06 carry a time (`ledger.cosignature`). Every
checkpoint of ours bears 01 and 06. Lines of unknown keys are ignored in any order; a line
of a known key that fails refuses the whole note.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from ledger import cosignature
from ledger.checkpoint import valid_origin
from ledger.errors import BadKey, MalformedNote, SignatureInvalid

__all__ = [
    "ED25519",
    "ED25519_COSIGNATURE",
    "MLDSA44",
    "Ed25519Cosigner",
    "Ed25519Signer",
    "Line",
    "MLDSA44Signer",
    "Opened",
    "Signer",
    "Verifier",
    "open_note",
    "parse",
    "sign_note",
    "vkey",
]

ED25519 = 0x01
ED25519_COSIGNATURE = 0x04
MLDSA44 = 0x06
_PUBLIC_SIZE = {ED25519: 32, ED25519_COSIGNATURE: 32, MLDSA44: 1312}
_SIGNATURE_SIZE = {ED25519: 64, ED25519_COSIGNATURE: 64, MLDSA44: 2420}
_MAX_NOTE = 1_000_000
_MAX_LINES = 100
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\ud800-\udfff]")
Entropy = Callable[[int], bytes]


@runtime_checkable
class Signer(Protocol):
    """Whatever can sign a note under one name: a key file here, a token elsewhere."""

    @property
    def name(self) -> str:
        """Key name; for a log's own keys its origin."""

    @property
    def algorithm(self) -> int:
        """Signature type of signed-note."""

    @property
    def public(self) -> bytes:
        """Raw public key."""

    @property
    def key_id(self) -> bytes:
        """Four bytes that let a reader find the key."""

    def sign(self, text: bytes, timestamp: int) -> bytes:
        """Return what follows the key id; `timestamp` (POSIX seconds) where the type has one."""


def _key_id(name: str, algorithm: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes((algorithm,)) + public).digest()[:4]


def _checked(name: str) -> str:
    if not valid_origin(name):
        raise BadKey(f"{name!r} is no key name: no space, no '+', no control character")
    return name


class Ed25519Signer:
    """A type 01 key: signs the text alone."""

    algorithm = ED25519

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = _checked(name)
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        self.key_id = _key_id(name, self.algorithm, self.public)

    @classmethod
    def generate(cls, name: str, entropy: Entropy) -> Self:
        """Return a new key from 32 bytes of `entropy`."""
        return cls(name, Ed25519PrivateKey.from_private_bytes(entropy(32)))

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> Self:
        """Return the key in an unencrypted PKCS #8 file."""
        key = _load(pem)
        if not isinstance(key, Ed25519PrivateKey):
            raise BadKey("this file holds no Ed25519 private key")
        return cls(name, key)

    def to_pem(self) -> bytes:
        """PKCS #8, unencrypted: write it with mode 0600."""
        return _dump(self._key)

    def sign(self, text: bytes, timestamp: int) -> bytes:  # noqa: ARG002  the type has no time
        """Return the 64 bytes of the signature."""
        return self._key.sign(text)


class Ed25519Cosigner(Ed25519Signer):
    """A type 04 key, a witness's: signs the text and the time, and not its own name.

    So two witnesses never share a key: a cosignature of one would pass for the other's.
    """

    algorithm = ED25519_COSIGNATURE

    def sign(self, text: bytes, timestamp: int) -> bytes:
        """Time and signature: 72 bytes."""
        message = cosignature.ed25519_message(text.decode(), timestamp)
        return cosignature.pack(timestamp, self._key.sign(message))


class MLDSA44Signer:
    """A type 06 key: post-quantum, signs a checkpoint and the time."""

    algorithm = MLDSA44

    def __init__(self, name: str, key: MLDSA44PrivateKey) -> None:
        self.name = _checked(name)
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        self.key_id = _key_id(name, self.algorithm, self.public)

    @classmethod
    def generate(cls, name: str, entropy: Entropy) -> MLDSA44Signer:
        """Return a new key from 32 bytes of `entropy` (the seed of FIPS 204)."""
        return cls(name, MLDSA44PrivateKey.from_seed_bytes(entropy(32)))

    @classmethod
    def from_pem(cls, name: str, pem: bytes) -> MLDSA44Signer:
        """Return the key in an unencrypted PKCS #8 file."""
        key = _load(pem)
        if not isinstance(key, MLDSA44PrivateKey):
            raise BadKey("this file holds no ML-DSA-44 private key")
        return cls(name, key)

    def to_pem(self) -> bytes:
        """PKCS #8, unencrypted: write it with mode 0600."""
        return _dump(self._key)

    def sign(self, text: bytes, timestamp: int) -> bytes:
        """Time and signature: 2,428 bytes."""
        message = cosignature.mldsa44_message(self.name, text.decode(), timestamp)
        return cosignature.pack(timestamp, self._key.sign(message))


def _load(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise BadKey("this file holds no unencrypted private key in PEM") from None


def _dump(key: Ed25519PrivateKey | MLDSA44PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def vkey(signer: Signer | Verifier) -> str:
    """Return the public key as one line, without its newline."""
    body = base64.b64encode(bytes((signer.algorithm,)) + signer.public).decode()
    return f"{signer.name}+{signer.key_id.hex()}+{body}"


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key that may sign notes."""

    name: str
    algorithm: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that let a reader find the key."""
        return _key_id(self.name, self.algorithm, self.public)

    @classmethod
    def from_vkey(cls, text: str) -> Verifier:
        """Parse a vkey of type 01, 04 or 06; raises BadKey."""
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise BadKey("a vkey is <name>+<key id>+<key>")
        try:
            body = base64.b64decode(parts[2])
        except (ValueError, binascii.Error):
            raise BadKey("the key of the vkey is not base64") from None
        if not body or len(body) - 1 != _PUBLIC_SIZE.get(body[0]):
            raise BadKey("the vkey is of a type that is not known here, or cut short")
        found = cls(_checked(parts[0]), body[0], body[1:])
        if vkey(found) != text:
            raise BadKey("the vkey is not spelled as its values are")
        return found

    def verify(self, text: str, payload: bytes) -> int | None:
        """Return the time it bears (POSIX; None for type 01); raises SignatureInvalid."""
        try:
            if self.algorithm == ED25519:
                Ed25519PublicKey.from_public_bytes(self.public).verify(payload, text.encode())
                return None
            time, raw = cosignature.unpack(payload, _SIGNATURE_SIZE[self.algorithm])
            if self.algorithm == ED25519_COSIGNATURE:
                message = cosignature.ed25519_message(text, time)
                Ed25519PublicKey.from_public_bytes(self.public).verify(raw, message)
            else:
                message = cosignature.mldsa44_message(self.name, text, time)
                MLDSA44PublicKey.from_public_bytes(self.public).verify(raw, message)
        except (InvalidSignature, ValueError):
            raise SignatureInvalid(f"the signature of {self.name} does not verify") from None
        return time


@dataclass(frozen=True, slots=True)
class Line:
    """One signature line: whose it says it is, and the bytes."""

    name: str
    key_id: bytes
    payload: bytes

    def __str__(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.payload).decode()}\n"


@dataclass(frozen=True, slots=True)
class Opened:
    """A note of which at least the given signatures are genuine: (key, time or None)."""

    text: str
    signed: tuple[tuple[Verifier, int | None], ...]


def sign_note(text: str, signers: Sequence[Signer], timestamp: int) -> str:
    """Return the note: the text, a blank line, one line per signer."""
    if not text.endswith("\n") or not _plain(text):
        raise MalformedNote("a note's text ends in a newline and has no control characters")
    lines = [Line(s.name, s.key_id, s.sign(text.encode(), timestamp)) for s in signers]
    return text + "\n" + "".join(map(str, lines))


def parse(note: str) -> tuple[str, tuple[Line, ...]]:
    """(text, signature lines), nothing verified; raises MalformedNote."""
    cut = note.rfind("\n\n")
    if cut < 0 or len(note) > _MAX_NOTE or not _plain(note):
        raise MalformedNote("a note is a text, a blank line and signature lines")
    text, rest = note[: cut + 1], note[cut + 2 :].split("\n")
    if rest.pop() or not 0 < len(rest) <= _MAX_LINES:
        raise MalformedNote("the signature lines of the note are not complete")
    lines = []
    for row in rest:
        parts = row.split(" ")
        if len(parts) != 3 or not valid_origin(parts[1]):
            raise MalformedNote("a signature line is a dash, a name and a signature")
        try:
            raw = base64.b64decode(parts[2])
        except (ValueError, binascii.Error):
            raise MalformedNote("a signature is not base64") from None
        line = Line(parts[1], raw[:4], raw[4:])
        if str(line) != row + "\n" or not line.payload:
            raise MalformedNote("a signature line is not spelled as its values are")
        lines.append(line)
    return text, tuple(lines)


def open_note(note: str, verifiers: Sequence[Verifier]) -> Opened:
    """Verify the lines of the known keys; raises SignatureInvalid if one fails or none is there."""
    text, lines = parse(note)
    known = {(v.name, v.key_id): v for v in verifiers}
    signed = [
        (known[line.name, line.key_id], known[line.name, line.key_id].verify(text, line.payload))
        for line in lines
        if (line.name, line.key_id) in known
    ]
    if not signed:
        raise SignatureInvalid(
            "no key that you trust has signed this note; if the log's keys were rotated, "
            "fetch its ledger.vkey again from where you trust it"
        )
    return Opened(text, tuple(signed))


def _plain(text: str) -> bool:
    return _CONTROL.search(text) is None
