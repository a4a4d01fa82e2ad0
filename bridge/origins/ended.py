"""The logs of a site that ended, in the order in which they did: where they lie, how each ended.

    ledger-closed/1/ledger/         tiles and checkpoint, as they were published; still servable
    ledger-closed/1/ledger.db       on PostgreSQL: the schema ledger_closed_1
    ledger-closed/1/ledger.vkey     what to verify it with, and ledger.policy
    ledger-closed/1/continued.json  how it ended, and what goes on: written last
    continuing.json                 the same, while `radseal ledger continue` is under way

`bridge/continuity/succession.py` makes them; everybody else only reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridge.errors import SettingsError
from bridge.files import fsync_folder
from bridge.logstore import PostgresStore
from bridge.origins.signing import write_secret
from bridge.site import Site
from ledger.log import Log
from ledger.store import SqliteStore

__all__ = [
    "Continuation", "Ended", "all_ended", "goes_on_as", "how", "number_of_log", "origins", "place",
    "store_of", "under_way", "write_plan",
]  # fmt: skip

_PLAN = "continuing.json"


@dataclass(frozen=True, slots=True)
class Continuation:
    """One log's end and the next one's beginning.

    `size` and `root` (base64) are the last state of the old log that is known to be published;
    `closed` says whether its last leaf is log.closed, which it is only where nothing newer
    than ours was published. A log that never had a leaf ends at size 0, without one.
    """

    number: int
    previous: str
    origin: str
    size: int
    root: str
    reason: str
    by: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A log that ended: its story and its leaves."""

    told: Continuation
    log: Log


def place(site_folder: Path, number: int) -> Path:
    """Give the folder of an ended log."""
    return site_folder / "ledger-closed" / str(number)


def store_of(site: Site, number: int | None = None) -> SqliteStore | PostgresStore:
    """Open the rows of an ended log; without a number, those of the open one."""
    if site.on_postgresql:
        schema = "ledger" if number is None else f"ledger_closed_{number}"
        return PostgresStore(site.database_url, schema)
    folder = site.folder if number is None else place(site.folder, number)
    return SqliteStore(folder / "ledger.db")


def all_ended(site: Site) -> list[Ended]:
    """Open the logs that ended, newest first; raises SettingsError where one cannot be told."""
    found = []
    for number in range(number_of_log(site.folder) - 1, 0, -1):
        told = how(site.folder, number)
        if told is None:
            raise SettingsError(f"ledger-closed/{number} is incomplete: restore it from the backup")
        folder = place(site.folder, number) / "ledger"
        found.append(Ended(told, Log(folder, store_of(site, number), told.previous, ())))
    return found


def number_of_log(site_folder: Path) -> int:
    """Give the number of the open log: 1 until a log of this site ended."""
    closed = site_folder / "ledger-closed"
    numbers = [int(one.parent.name) for one in closed.glob("*/continued.json")]
    return max(numbers, default=0) + 1


def how(site_folder: Path, number: int) -> Continuation | None:
    """Say how a log ended; None where none of this number did. Raises SettingsError."""
    return _read(place(site_folder, number) / "continued.json")


def goes_on_as(site_folder: Path) -> str | None:
    """Give the name that the open log got when the one before it ended; None for a first log."""
    told = how(site_folder, number_of_log(site_folder) - 1)
    return None if told is None else told.origin


def origins(site: Site) -> set[str]:
    """Give the names of all logs of a site, the open one's too."""
    ended = (_read(path) for path in (site.folder / "ledger-closed").glob("*/continued.json"))
    return {site.origin, *(told.previous for told in ended if told is not None)}


def under_way(site_folder: Path) -> Continuation | None:
    """Give the continuation that was begun and not finished."""
    return _read(site_folder / _PLAN)


def write_plan(site_folder: Path, told: Continuation) -> None:
    """Write down what is about to be done; from here on it is finished, not begun anew."""
    write_secret(site_folder / _PLAN, json.dumps(asdict(told), indent=2).encode())
    fsync_folder(site_folder)


def _read(path: Path) -> Continuation | None:
    try:
        said: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Continuation(**said)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError):
        raise SettingsError(f"{path.name} cannot be read: restore it from the backup") from None
