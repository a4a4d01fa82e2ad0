"""A witness's folder: its keys, the logs it trusts, its record. Alone, or inside a site's folder.

    witness.vkey        its public keys, one vkey a line: Ed25519 (04) first, then ML-DSA-44 (06)
    keys/               the private halves, 0600
    logs                whom it cosigns: `log <vkey>` lines of tlog-policy, read at each request
    witness.db          what it last cosigned of each log

Never restore `witness.db` from a backup: a witness that forgets signs two histories. Make a new
witness with new keys instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bridge.errors import Refused, SettingsError, WrongUse
from bridge.origins.signing import write_secret
from ledger import cosigner, durable, note
from ledger.checkpoint import valid_origin
from ledger.cosigner import Cosigner, Known
from ledger.errors import LedgerError
from ledger.policy import NO_QUORUM, Policy

__all__ = ["create", "open_witness", "policy_lines", "trust", "trusted", "vkeys"]

_KEYS = ("ed25519.pem", "mldsa44.pem")
_HEAD = "# The logs that this witness cosigns: `log <vkey>`, one a line (radseal witness trust).\n"


def create(folder: Path, name: str, entropy: Callable[[int], bytes]) -> None:
    """Make a witness; raises WrongUse for a folder with content or a bad name."""
    if not valid_origin(name) or len(name.encode()) > 255:
        raise WrongUse(
            "a witness's name has no space and no '+', such as witness.hospital.example/w1"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(f"{folder} is not empty; choose a new folder")
    (folder / "keys").mkdir(parents=True, mode=0o700)
    signers: Sequence[note.Ed25519Cosigner | note.MLDSA44Signer] = (
        note.Ed25519Cosigner.generate(name, entropy),
        note.MLDSA44Signer.generate(name, entropy),
    )
    for file, signer in zip(_KEYS, signers, strict=True):
        write_secret(folder / "keys" / file, signer.to_pem())
    durable.sync_folder(folder / "keys")
    _write(folder / "logs", _HEAD)
    cosigner.create(folder / "witness.db")
    # Last: a folder without it is no witness, and can be made again elsewhere.
    _write(folder / "witness.vkey", "".join(f"{note.vkey(one)}\n" for one in signers))


def vkeys(folder: Path) -> list[str]:
    """Return the witness's public keys; raises SettingsError for what is no witness."""
    try:
        return (folder / "witness.vkey").read_text(encoding="utf-8").split()
    except OSError:
        raise SettingsError(
            f"{folder} is no witness; make one with `radseal witness init DIR --name NAME`"
        ) from None


def policy_lines(folder: Path, name: str, url: str) -> list[str]:
    """Return the lines for a partner's [ledger] witnesses, one for each key."""
    ed25519, mldsa44 = vkeys(folder)
    return [f"witness {name} {ed25519} {url}", f"witness {name}-mldsa44 {mldsa44} {url}"]


def open_witness(folder: Path) -> Cosigner:
    """Open a witness; raises SettingsError where keys or record are missing."""
    try:
        name = note.Verifier.from_vkey(vkeys(folder)[0]).name
        ed25519, mldsa44 = ((folder / "keys" / file).read_bytes() for file in _KEYS)
        signers = (
            note.Ed25519Cosigner.from_pem(name, ed25519),
            note.MLDSA44Signer.from_pem(name, mldsa44),
        )
        if [note.vkey(one) for one in signers] != vkeys(folder):
            raise SettingsError(f"{folder}/keys are not the keys of witness.vkey: restore them")
        trusted(folder)
        return Cosigner(folder / "witness.db", signers, lambda: trusted(folder))
    except OSError as error:
        raise SettingsError(
            f"{folder}: a key of the witness cannot be read ({error.strerror}): restore keys/"
        ) from None
    except LedgerError as error:
        raise SettingsError(f"{folder}: {error}") from None


def trusted(folder: Path) -> Known:
    """Read the logs that this witness knows; raises SettingsError naming the line."""
    known: dict[str, list[note.Verifier]] = {}
    for one in _policy(folder).logs:
        known.setdefault(one.name, []).append(one.key)
    return known


def trust(folder: Path, keys: Sequence[str]) -> list[str]:
    """Add logs by their vkeys and return the origins; raises Refused naming a bad one."""
    before = _policy(folder)
    vkeys(folder)
    have = {note.vkey(one.key) for one in before.logs}
    fresh = [key for key in dict.fromkeys(keys) if key not in have]
    text = (folder / "logs").read_text(encoding="utf-8") + "".join(f"log {k}\n" for k in fresh)
    try:
        _parse(text)
    except LedgerError as error:
        raise Refused(f"not added: {error}; copy whole lines of the log's ledger.vkey") from None
    _write(folder / "logs", text)
    return sorted({key.partition("+")[0] for key in keys})


def _policy(folder: Path) -> Policy:
    path = folder / "logs"
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (LedgerError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _parse(text: str) -> Policy:
    return Policy.parse(f"{text}quorum {NO_QUORUM}\n")


def _write(path: Path, text: str) -> None:
    durable.write({path: text.encode()}, path.parent / ".tmp")
