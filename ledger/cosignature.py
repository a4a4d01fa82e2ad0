r"""What a timestamped signature signs: tlog-cosignature 1.1 (C2SP). Pure.

    type 04, Ed25519      "cosignature/v1\ntime <decimal>\n" ‖ the whole note text
    type 06, ML-DSA-44    "subtree/v1\n\0" ‖ u8 len ‖ cosigner ‖ u64 time
                          ‖ u8 len ‖ origin ‖ u64 start = 0 ‖ u64 end = size ‖ root

    the signature in the note line = u64 time, big-endian ‖ raw signature

Meaning: "at that time, the largest consistent tree I saw for this origin has this root".
"""

from __future__ import annotations

from ledger.checkpoint import Checkpoint
from ledger.errors import MalformedNote

__all__ = ["ed25519_message", "mldsa44_message", "pack", "unpack"]


def ed25519_message(text: str, time: int) -> bytes:
    """Return the bytes that a type 04 key signs at `time` (POSIX seconds)."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def mldsa44_message(cosigner: str, text: str, time: int) -> bytes:
    """Return the bytes that the type 06 key of `cosigner` signs at `time` (POSIX seconds).

    Raises MalformedCheckpoint where the note's text is no checkpoint.
    """
    point = Checkpoint.parse(text)
    return b"".join(
        (
            b"subtree/v1\n\0",
            _short(cosigner),
            time.to_bytes(8, "big"),
            _short(point.origin),
            (0).to_bytes(8, "big"),
            point.size.to_bytes(8, "big"),
            point.root,
        )
    )


def pack(time: int, signature: bytes) -> bytes:
    """Timestamp and raw signature as a note line carries them."""
    return time.to_bytes(8, "big") + signature


def unpack(payload: bytes, length: int) -> tuple[int, bytes]:
    """(time, raw signature of `length` bytes); raises MalformedNote."""
    time = int.from_bytes(payload[:8], "big")
    if len(payload) != 8 + length or time >= 1 << 63:
        raise MalformedNote("a timestamped signature has the wrong length or time")
    return time, payload[8:]


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise MalformedNote("a name is longer than 255 bytes")
    return bytes((len(data),)) + data
