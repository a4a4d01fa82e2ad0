"""OpenSSF Model Signing, key mode: verify and sign with `cryptography` alone.

A detached Sigstore bundle v0.3 (`PKG.sig` beside the folder `PKG`) holds a DSSE
envelope around an in-toto statement v1 whose predicate
`https://model_signing/signature/v1.0` lists a SHA-256 for every file. Keys are
ECDSA P-256, P-384 or P-521 with the SHA-2 of their size; the bundle's hint is
the SHA-256 of the public key's PEM. Key mode knows no expiry: the site keeps
when each key is trusted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from models.errors import PackageError, SignatureError
from models.folder import file_digests, tree_digest

__all__ = ["Signed", "key_hint", "sign", "state", "verify"]

_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore")
_MAX_BUNDLE: Final = 16 * 1024**2
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class Signed:
    """A verified signature: whose key (hint), over which package, which files (name → SHA-256)."""

    key_hint: str
    package_digest: str
    files: Mapping[str, str]


def _curve_hash(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    algorithm = _HASHES.get(key.curve.name)
    if algorithm is None:
        raise SignatureError(f"curve {key.curve.name} is not one of P-256, P-384, P-521")
    return algorithm


def _public(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError("this is not a PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SignatureError("only ECDSA keys (P-256, P-384, P-521) sign models")
    _curve_hash(key)
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_hint(public_pem: bytes) -> str:
    """Name a public key: SHA-256 of its PEM as the signing tool writes it, in hex."""
    return hashlib.sha256(_pem(_public(public_pem))).hexdigest()


def _pae(payload: bytes) -> bytes:
    """DSSE v1 pre-authentication encoding."""
    return b"DSSEv1 %d %s %d " % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload)) + payload


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise SignatureError("a key stands twice in the signature")
    return found


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SignatureError("the signature is not JSON") from error
    if not isinstance(value, dict):
        raise SignatureError("the signature is not a JSON object")
    return value


def _open_bundle(sig_path: Path) -> tuple[str, bytes, bytes]:
    """Return (key hint, payload, signature bytes) of a bundle file."""
    try:
        if sig_path.stat().st_size > _MAX_BUNDLE:
            raise SignatureError("the signature file is too large")
        bundle = _json(sig_path.read_bytes())
    except OSError as error:
        raise SignatureError(f"no readable signature {sig_path.name}") from error
    try:
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
        envelope = bundle["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        value = base64.b64decode(signature["sig"], validate=True)
        kind, media = envelope["payloadType"], bundle["mediaType"]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise SignatureError("the signature is not a Sigstore bundle with one key") from error
    if kind != _PAYLOAD or media != _BUNDLE or not isinstance(hint, str):
        raise SignatureError("the signature is not a Sigstore bundle v0.3 of an in-toto statement")
    return hint, payload, value


def _listed(payload: bytes) -> dict[str, str]:
    """Return the files a signed statement lists, after checking its own consistency."""
    statement = _json(payload)
    try:
        types = (statement["_type"], statement["predicateType"])
        (subject,) = statement["subject"]
        resources = statement["predicate"]["resources"]
        serialization_ = statement["predicate"]["serialization"]
        rows = [(r["name"], r["digest"], r["algorithm"]) for r in resources]
        whole = subject["digest"]["sha256"]
        method = (serialization_["method"], serialization_["hash_type"])
    except (KeyError, TypeError, ValueError) as error:
        raise SignatureError("the signed statement lacks its parts") from error
    if types != (_STATEMENT, _PREDICATE):
        raise SignatureError("the signed statement is of another type")
    if method != ("files", "sha256") or any(row[2] != "sha256" for row in rows):
        raise SignatureError("only SHA-256 over whole files is accepted")
    files = {str(name): str(digest) for name, digest, _ in rows}
    try:
        same = len(files) == len(rows) and tree_digest(files) == whole
    except ValueError as error:
        raise SignatureError("a digest in the signed statement is not hex") from error
    if not same:
        raise SignatureError("the signed statement contradicts itself")
    return files


def _difference(signed: Mapping[str, str], present: Mapping[str, str]) -> str:
    for name in sorted(set(signed) | set(present)):
        if name not in present:
            return f"{name} is signed but missing"
        if name not in signed:
            return f"{name} is there but not signed"
        if signed[name] != present[name]:
            return f"{name} was changed after signing"
    return ""


def verify(root: Path, sig_path: Path, trusted_pems: Sequence[bytes]) -> Signed:
    """Verify that one of the trusted keys signed exactly the files below `root`.

    Raises SignatureError saying what is wrong (no such key, changed, extra or
    missing file, bad signature) and PackageError for a folder that cannot be
    signed at all.
    """
    hint, payload, value = _open_bundle(sig_path)
    keys = {key_hint(pem): _public(pem) for pem in trusted_pems}
    key = keys.get(hint)
    if key is None:
        raise SignatureError(
            f"signed with key {hint[:12]}, which is not trusted here (`radseal model trust`)"
        )
    try:
        key.verify(value, _pae(payload), ec.ECDSA(_curve_hash(key)))
    except InvalidSignature as error:
        raise SignatureError("the signature does not fit the key") from error
    signed, present = _listed(payload), file_digests(root)
    different = _difference(signed, present)
    if different:
        raise SignatureError(different)
    return Signed(hint, tree_digest(present), present)


def state(root: Path, sig_path: Path, pems: Sequence[bytes]) -> str:
    """Say in a few words how a package is signed; never raises for what a vendor did."""
    if not sig_path.exists():
        return "unsigned"
    try:
        signed = verify(root, sig_path, pems)
    except SignatureError as error:
        return f"not verified: {error}"
    except PackageError as error:
        return f"not verified: {error.file} {error.text}"
    return f"verified: key {signed.key_hint[:12]}"


def sign(root: Path, private_pem: bytes, sig_path: Path) -> Signed:
    """Sign the folder `root` as the standard tool does; `private_pem` is an unencrypted EC key.

    Raises SignatureError for another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(private_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("this is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SignatureError("only ECDSA keys (P-256, P-384, P-521) sign models")
    public = key.public_key()
    files = file_digests(root)
    hint = hashlib.sha256(_pem(public)).hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": root.resolve().name, "digest": {"sha256": tree_digest(files)}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digest}
                for name, digest in files.items()
            ],
        },
    }
    payload = json.dumps(statement, indent=2).encode()
    value = key.sign(_pae(payload), ec.ECDSA(_curve_hash(public)))
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(value).decode(), "keyid": ""}],
        },
    }
    sig_path.write_text(json.dumps(bundle, separators=(",", ":")), encoding="utf-8")
    return Signed(hint, tree_digest(files), files)
