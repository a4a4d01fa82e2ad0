"""What others have seen of our log, and how it compares with what we hold."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path

from bridge.errors import NotFound, Refused, SettingsError, WrongUse
from bridge.peers.witness import NoAnswer, ask
from ledger.checkpoint import Checkpoint
from ledger.errors import LedgerError
from ledger.log import Log
from ledger.verify import open_checkpoint, read_vkeys

__all__ = ["Standing", "compare", "fetch", "own_vkeys"]

_MOST = 1_000_000


class Standing(enum.StrEnum):
    """Where our log stands to a published checkpoint."""

    EQUAL = "equal"
    AHEAD = "ahead"  # ours goes on where the published one ends
    BEHIND = "behind"  # leaves were published that we do not hold
    OTHER = "other"  # a history that is not ours


def own_vkeys(site_folder: Path) -> list[str]:
    """Read the vkeys that a site gives away for its open log; raises SettingsError."""
    try:
        return read_vkeys((site_folder / "ledger.vkey").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise SettingsError(f"ledger.vkey cannot be read: {why}") from None


def fetch(where: str, vkeys: Sequence[str]) -> Checkpoint:
    """Read a checkpoint from a file, a log folder or a URL, signed by the log's keys.

    A URL is that of the checkpoint, or of the log (…/ledger). Raises NotFound, Refused.
    """
    try:
        return open_checkpoint(_read(where), vkeys)[0]
    except (LedgerError, UnicodeDecodeError) as error:
        raise Refused(f"{where} is no checkpoint that this log's keys signed: {error}") from None


def compare(log: Log, published: Checkpoint) -> Standing:
    """Compare what we signed with a published checkpoint; raises Refused, LedgerError."""
    if published.origin != log.origin:
        raise Refused(f"the checkpoint is of {published.origin}, this log is {log.origin}")
    head = log.store.head()
    if published.size > head.size:
        return Standing.BEHIND
    ours = head.root if published.size == head.size else log.root(published.size)
    if ours != published.root:
        return Standing.OTHER
    return Standing.EQUAL if published.size == head.size else Standing.AHEAD


def _read(where: str) -> str:
    if "://" not in where:
        path = Path(where)
        path = path / "checkpoint" if path.is_dir() else path
        try:
            with path.open("rb") as file:
                return file.read(_MOST).decode()
        except OSError as error:
            raise NotFound(f"{path} cannot be read: {error.strerror}") from None
    if not where.startswith(("https://", "http://")):
        raise WrongUse("a published checkpoint is a file, a folder, or an http(s) address")
    whole = where.rstrip("/").endswith("checkpoint")
    answer = ask("GET", where if whole else f"{where.rstrip('/')}/checkpoint")
    if isinstance(answer, NoAnswer):
        raise NotFound(f"{where} does not give its checkpoint: {answer.code}")
    if answer.status != 200:
        raise NotFound(f"{where} does not give its checkpoint: HTTP {answer.status}")
    return answer.body.decode()
