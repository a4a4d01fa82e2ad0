"""What stands in a leaf instead of a name, a UID or a digest: keyed commitments. Pure.

Key hierarchy (all HMAC-SHA-256, all keys exactly 32 bytes)::

    K_p  one per patient, random, in the vault (bridge/vault.py)
    K_p ──▶ subject alias = HMAC(K_p, "subject/v1")
    K_p ──▶ K_s = HMAC(K_p, "study/v1\\0" ‖ StudyInstanceUID)
    K_s ──▶ commitments to UIDs and instances, and K_a per artifact
    K_a ──▶ commitments to content, signature and coercible attributes

Whoever holds K_s can recompute everything about one study and nothing about another; whoever
holds K_a (it travels in the artifact) can check one artifact. Source: design §4b; test vectors:
``tests/vectors/commitments``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NewType

from bridge.errors import RadsealError

__all__ = [
    "KEY_BYTES",
    "ArtifactKey",
    "CommitmentError",
    "StudyKey",
    "artifact_key",
    "attribute_commitment",
    "content_commitment",
    "document_commitment",
    "exactly",
    "instance_commitment",
    "mac",
    "output_commitment",
    "request_commitment",
    "signature_commitment",
    "study_alias",
    "subject_alias",
    "text_bytes",
    "uid_commitment",
]

StudyKey = NewType("StudyKey", bytes)
ArtifactKey = NewType("ArtifactKey", bytes)

KEY_BYTES = 32


class CommitmentError(RadsealError):
    """A key or a digest has the wrong length; the text holds no patient data."""


def subject_alias(subject_key: bytes) -> str:
    """Return the name of a subject in leaves: HMAC(K_p, "subject/v1")."""
    return "urn:radseal:subject:" + _under(subject_key, "K_p", b"subject/v1").hex()


def study_alias(study_key: StudyKey) -> str:
    """Return the name of a study in leaves: HMAC(K_s, "alias/v1")."""
    return "urn:radseal:study:" + _under(study_key, "K_s", b"alias/v1").hex()


def uid_commitment(study_key: StudyKey, uid: str) -> bytes:
    """Return HMAC(K_s, "uid/v1\\0" ‖ UID)."""
    return _under(study_key, "K_s", b"uid/v1\0", text_bytes(uid))


def instance_commitment(study_key: StudyKey, sha256: bytes) -> bytes:
    """Return HMAC(K_s, "inst/v1\\0" ‖ SHA-256 of the instance), a leaf of the input root."""
    return _under(study_key, "K_s", b"inst/v1\0", exactly(32, sha256, "an instance digest"))


def output_commitment(study_key: StudyKey, sha256: bytes) -> bytes:
    """Return HMAC(K_s, "out/v1\\0" ‖ SHA-256 of a document of the study)."""
    return _under(study_key, "K_s", b"out/v1\0", exactly(32, sha256, "an output digest"))


def request_commitment(study_key: StudyKey, request: bytes) -> bytes:
    """Return HMAC(K_s, "request/v1\\0" ‖ SHA-256 of the consent request's JSON)."""
    return _under(study_key, "K_s", b"request/v1\0", hashlib.sha256(request).digest())


def document_commitment(study_key: StudyKey, document: bytes) -> bytes:
    """Return HMAC(K_s, "consent/v1\0" ‖ SHA-256 of a consent document) as one study's key sees it.

    The leaf consent.granted commits to the same document under K_p, which is never disclosed.
    """
    return _under(study_key, "K_s", b"consent/v1\0", hashlib.sha256(document).digest())


def artifact_key(study_key: StudyKey, artifact_id: str) -> ArtifactKey:
    """Return K_a = HMAC(K_s, "artifact/v1\\0" ‖ SOPInstanceUID, or a uuid URN for HL7 and FHIR)."""
    exactly(KEY_BYTES, study_key, "K_s")
    if not artifact_id:
        raise CommitmentError("an artifact key needs the artifact's id")
    return ArtifactKey(mac(study_key, b"artifact/v1\0", text_bytes(artifact_id)))


def content_commitment(key: ArtifactKey, digest: bytes) -> bytes:
    """Return HMAC(K_a, "content/v1\\0" ‖ content digest)."""
    return _under(key, "K_a", b"content/v1\0", exactly(32, digest, "a content digest"))


def signature_commitment(key: ArtifactKey, signature_sha256: bytes) -> bytes:
    """Return HMAC(K_a, "sig/v1\\0" ‖ SHA-256 of the signature value)."""
    return _under(key, "K_a", b"sig/v1\0", exactly(32, signature_sha256, "a signature digest"))


def attribute_commitment(key: ArtifactKey, tag: str, value: bytes) -> bytes:
    """Return HMAC(K_a, "attr/v1\\0" ‖ tag ‖ value).

    The tag is written as eight upper-case hex digits ("00100020", as in DICOM JSON); also
    "0010,0020" and "(0010,0020)" are understood. ``value`` is the attribute's canonical bytes.
    """
    exactly(KEY_BYTES, key, "K_a")
    digits = re.sub(r"[(), ]", "", tag).upper()
    if not re.fullmatch(r"[0-9A-F]{8}", digits):
        raise CommitmentError("a tag is eight hex digits")
    return mac(key, b"attr/v1\0", digits.encode("ascii"), value)


def _under(key: bytes, name: str, *parts: bytes) -> bytes:
    return mac(exactly(KEY_BYTES, key, name), *parts)


def mac(key: bytes, *parts: bytes) -> bytes:
    """Return HMAC-SHA-256 over the joined parts."""
    return hmac.digest(key, b"".join(parts), "sha256")


def exactly(length: int, value: bytes, what: str) -> bytes:
    """Return `value`; raises CommitmentError unless it has this length."""
    if len(value) != length:
        raise CommitmentError(f"{what} must be exactly {length} bytes, not {len(value)}")
    return value


def text_bytes(text: str) -> bytes:
    """UTF-8; bytes that were no text when they came (surrogates) go back to what they were."""
    return text.encode("utf-8", "surrogateescape")
