"""The private keys that sign the log, as they lie in `keys/`, and how one pair follows another.

    keys/ledger-ed25519.pem  ledger-mldsa44.pem      the log's first pair
    keys/ledger-2/           ed25519.pem  mldsa44.pem  rotation.json      the pair that followed it
    keys/log-2/              the same again, for the site's second log

Every pair that is there signs every checkpoint, the newest first: so a reader who knows the old
keys or the new ones is served while both are there. A pair appears with one rename and ends with
one unlink; a pair of which a file is missing counts only where there is no newer one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import SettingsError
from bridge.files import fsync_folder
from ledger import note
from ledger.errors import LedgerError

__all__ = [
    "Pair", "announced", "drop_all", "drop_pair", "end_overlap", "folder_of", "make_pair", "pairs",
    "rotation_leaves", "write_secret",
]  # fmt: skip

_ED25519, _MLDSA44 = "ed25519.pem", "mldsa44.pem"


@dataclass(frozen=True, slots=True)
class Pair:
    """One generation of a log's keys; `about` says by whom and when it was made."""

    number: int
    ed25519: note.Ed25519Signer
    mldsa44: note.MLDSA44Signer
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def signers(self) -> tuple[note.Signer, ...]:
        """Both keys, Ed25519 first."""
        return self.ed25519, self.mldsa44

    @property
    def vkeys(self) -> list[str]:
        """Their public halves, Ed25519 first."""
        return [note.vkey(signer) for signer in self.signers]


def folder_of(site_folder: Path, log: int) -> Path:
    """Give the folder of a log's keys; logs of a site count from 1."""
    keys = site_folder / "keys"
    return keys if log == 1 else keys / f"log-{log}"


def pairs(folder: Path, origin: str) -> list[Pair]:
    """Read the pairs in a folder, newest first; raises SettingsError where none is complete."""
    numbers = [
        int(one.name.removeprefix("ledger-"))
        for one in folder.glob("ledger-[0-9]*")
        if one.is_dir() and one.name.removeprefix("ledger-").isdigit()
    ]
    numbers = [one for one in numbers if all(path.exists() for path in _paths(folder, one))]
    found = [_read(folder, origin, number) for number in sorted(numbers, reverse=True)]
    if not found or all(path.exists() for path in _paths(folder, 1)):
        found.append(_read(folder, origin, 1))
    return found


def announced(vkey: str) -> str:
    """Name a key in a leaf: its vkey, or where that is longer than a label its SHA-256 in hex."""
    return vkey if len(vkey) <= 200 else _digest(vkey)


def rotation_leaves(generations: Sequence[Pair]) -> list[tuple[str, dict[str, Any]]]:
    """Give the key.rotated leaves that these pairs call for: (idem, body), in their order.

    `keys` are the SHA-256 of the vkeys of *all* keys that sign from this leaf on, newest first;
    `proof` is the new Ed25519 key's signature over origin and `keys`. That the new ML-DSA key
    is ours, too, the checkpoints show: both sign those that cover the leaf.
    """
    newest = generations[0]
    if newest.number == 1:
        return []
    name, by = _digest(newest.vkeys[0]), newest.about.get("by", "unknown")
    joined = _rotated(newest, generations, newest.about.get("reason", "rotation"), by)
    alone = _rotated(newest, generations[:1], "overlap-ended", newest.about.get("ended_by", by))
    found = [(f"key/{name}/joined", joined)]
    return found if len(generations) > 1 else [*found, (f"key/{name}/alone", alone)]


def _rotated(newest: Pair, signing: Sequence[Pair], reason: str, by: str) -> dict[str, Any]:
    keys = [_digest(key) for pair in signing for key in pair.vkeys]
    statement = "\n".join(["radseal/key.rotated/v1", newest.ed25519.name, *keys, ""])
    signature = base64.b64encode(newest.ed25519.sign(statement.encode(), 0)).decode()
    proof = [{"key": announced(newest.vkeys[0]), "signature": signature}]
    return {"keys": keys, "reason": reason, "by": by, "proof": proof}


def _digest(vkey: str) -> str:
    return hashlib.sha256(vkey.encode()).hexdigest()


def make_pair(
    folder: Path, origin: str, number: int, entropy: note.Entropy, about: Mapping[str, str]
) -> None:
    """Make a pair, durable and whole or not at all; one that is there stays.

    Made again after a crash it may be another pair: nobody has seen the first.
    """
    if number == 1:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = dict(zip(_paths(folder, 1), _fresh(origin, entropy), strict=True))
        if not all(path.exists() for path in made):
            for path, data in made.items():
                path.unlink(missing_ok=True)
                write_secret(path, data)
        fsync_folder(folder)
        fsync_folder(folder.parent)
        return
    target = folder / f"ledger-{number}"
    if target.exists():
        return
    part = folder / f"ledger-{number}.part"
    part.mkdir(mode=0o700, exist_ok=True)
    for path in part.iterdir():
        path.unlink()
    for name, data in zip((_ED25519, _MLDSA44), _fresh(origin, entropy), strict=True):
        write_secret(part / name, data)
    write_secret(part / "rotation.json", json.dumps(dict(about)).encode())
    fsync_folder(part)
    part.rename(target)
    fsync_folder(folder)


def end_overlap(folder: Path, newest: Pair, by: str) -> None:
    """Note beside a pair who lets it sign alone."""
    about = {**newest.about, "ended_by": by}
    write_secret(folder / f"ledger-{newest.number}" / "rotation.json", json.dumps(about).encode())


def drop_pair(folder: Path, number: int) -> None:
    """Destroy a pair: from the first unlink on it signs nothing."""
    for path in (*_paths(folder, number), folder / f"ledger-{number}" / "rotation.json"):
        path.unlink(missing_ok=True)
        if path.parent.exists():
            fsync_folder(path.parent)
    if number > 1 and (folder / f"ledger-{number}").exists():
        (folder / f"ledger-{number}").rmdir()
        fsync_folder(folder)


def drop_all(folder: Path) -> None:
    """Destroy every pair in a folder; safe to repeat after a crash in the middle of it."""
    for pattern in ("ledger-*.pem", "ledger-*/*"):
        for path in sorted(folder.glob(pattern)):
            path.unlink()
    for path in sorted(folder.glob("ledger-*")):
        path.rmdir()
    if folder.exists():
        fsync_folder(folder)


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only we may read, whole or not at all; its folder is not yet fsynced."""
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def _fresh(origin: str, entropy: note.Entropy) -> tuple[bytes, bytes]:
    return (
        note.Ed25519Signer.generate(origin, entropy).to_pem(),
        note.MLDSA44Signer.generate(origin, entropy).to_pem(),
    )


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    if number == 1:
        return folder / f"ledger-{_ED25519}", folder / f"ledger-{_MLDSA44}"
    return folder / f"ledger-{number}" / _ED25519, folder / f"ledger-{number}" / _MLDSA44


def _read(folder: Path, origin: str, number: int) -> Pair:
    ed25519, mldsa44 = _paths(folder, number)
    about = folder / f"ledger-{number}" / "rotation.json"
    try:
        return Pair(
            number,
            note.Ed25519Signer.from_pem(origin, read_secret(ed25519)),
            note.MLDSA44Signer.from_pem(origin, read_secret(mldsa44)),
            json.loads(about.read_text(encoding="utf-8")) if about.exists() else {},
        )
    except (LedgerError, ValueError) as error:
        raise SettingsError(f"keys/: {error}; restore the keys from the backup") from None


def read_secret(path: Path) -> bytes:
    """Read one of a site's key files; raises SettingsError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read ({error.strerror}); a site's keys are made by `radseal init`, "
            "restore them from the backup"
        ) from None
