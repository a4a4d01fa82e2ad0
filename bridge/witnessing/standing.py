"""How each witness stands to our log, kept in `ledger/.witness/`, and what people are told of it.

    state.json      each witness's standing, and the size under `checkpoint.witnessed`
    NAME.note       what a witness showed that contradicts our log: keep it

A cache of what witnesses said: without it they are asked again. What must be provable is a leaf
(`witness.status`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from ledger import durable

__all__ = [
    "Board",
    "Line",
    "Overview",
    "Standing",
    "State",
    "keep_evidence",
    "overview",
    "read",
    "tell",
    "write",
]

_FOLDER = ".witness"


class State(StrEnum):
    """What a witness's last answers mean."""

    NEW = "new"
    OK = "ok"
    BEHIND = "behind"
    REFUSED = "refused"
    SPLIT = "split"
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, slots=True)
class Standing:
    """One witness. Times are POSIX seconds.

    `size` is the largest tree of ours that it cosigned, `cosigned` when it said so, `lacking`
    since when a published checkpoint waits for it (None: none does).
    """

    state: State = State.NEW
    reason: str = ""
    size: int = 0
    cosigned: int | None = None
    lacking: int | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """All witnesses by name; `witnessed` is the size under `checkpoint.witnessed`.

    `lacking` is since when a published checkpoint waits for its quorum.
    """

    witnesses: Mapping[str, Standing] = field(default_factory=dict)
    witnessed: int = 0
    lacking: int | None = None


def read(ledger: Path) -> Board:
    """Read what is kept beside a log; a missing or damaged file is an empty board."""
    try:
        said = json.loads((ledger / _FOLDER / "state.json").read_text(encoding="utf-8"))
        witnesses = {
            name: Standing(**{**one, "state": State(one["state"])})
            for name, one in said["witnesses"].items()
        }
        return Board(witnesses, int(said["witnessed"]), said["lacking"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Board()


def write(ledger: Path, board: Board) -> None:
    """Keep it, durable; raises StorageFailed."""
    text = json.dumps(
        {
            "witnesses": {name: asdict(one) for name, one in board.witnesses.items()},
            "witnessed": board.witnessed, "lacking": board.lacking,
        },
        indent=1,
    )  # fmt: skip
    _durable(ledger, "state.json", text)


def keep_evidence(ledger: Path, name: str, signed: str) -> None:
    """Keep what a witness showed; raises StorageFailed."""
    _durable(ledger, f"{name}.note", signed)


def _durable(ledger: Path, name: str, text: str) -> None:
    folder = ledger / _FOLDER
    durable.write({folder / name: text.encode()}, folder / "tmp")


_REFUSALS = {
    "unknown-log": "does not know this log: send its operator ledger.vkey; with radseal he types "
    "`radseal witness trust DIR` and the lines of that file",
    "signature": "does not accept our signature: send its operator the present ledger.vkey",
    "bad-cosignature": "answers with a signature that its key in site.toml did not make: compare "
    "the vkey with its operator",
    "bad-answer": "answers with something that is no cosignature: compare the address and the "
    "vkey with its operator",
    "clock": "signs with a time more than an hour from ours: check both clocks",
    "conflict-loop": "contradicts itself about the size it has seen: ask its operator",
    "unfounded": "contradicts us, and shows a checkpoint that agrees with us: ask its operator",
    "bad-request": "does not understand our request: is it a tlog-witness?",
}


def tell(name: str, one: Standing, size: int) -> tuple[bool, str]:
    """Say whether a witness is as it should be, and in words what to do if not.

    `size` is that of the published checkpoint.
    """
    if one.reason == "shown":
        shown, told = "it showed it, signed by our keys", f"--published ledger/.witness/{name}.note"
    else:
        shown, told = "it says so without showing it, so ask its operator first", "--behind"
    again = (
        "care goes on; find out which copy sent results, keep both, then stop the service and go "
        f"on under a new origin: radseal ledger continue NEW_ORIGIN {told}"
    )
    match one.state:
        case State.NEW:
            return True, "has not answered yet; it is asked while `radseal serve` runs"
        case State.OK:
            return True, f"cosigned {one.size} of {size} leaves at {when(one.cosigned)}"
        case State.BEHIND:
            return False, (
                f"has cosigned {one.size} of {size} leaves and nothing newer since "
                f"{when(one.lacking)} ({one.reason}): check its address in [ledger] witnesses, and "
                "ask its operator"
            )
        case State.REFUSED:
            other = f"refuses ({one.reason}): check its address in [ledger] witnesses"
            return False, _REFUSALS.get(one.reason, other)
        case State.ROLLED_BACK:
            return False, (
                f"has cosigned {one.size} leaves of this log, and here are {size} ({shown}): this "
                f"site was put back to an older copy; {again}"
            )
        case State.SPLIT:
            return False, (
                f"holds another history of this log than ours ({shown}): two copies of this site "
                f"have run; {again}"
            )


@dataclass(frozen=True, slots=True)
class Line:
    """One witness, or their quorum, as people are told of it."""

    name: str
    state: str
    ok: bool
    words: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The log and its witnesses: published size, size under the quorum, a line for each."""

    size: int
    witnessed: int
    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return all(line.ok for line in self.lines)


def overview(board: Board, names: Sequence[str], size: int, lag: timedelta, now: int) -> Overview:
    """Say of each witness of these names, and of their quorum, how it stands; at POSIX `now`."""
    lines = []
    for name in names:
        one = board.witnesses.get(name, Standing())
        ok, words = tell(name, one, size)
        lines.append(Line(name, str(one.state), ok, words))
    if names:
        late = board.lacking is not None and now - board.lacking > lag.total_seconds()
        words = f"{board.witnessed} of {size} leaves are under checkpoint.witnessed"
        if late:
            words += (
                f", no newer ones since {when(board.lacking)}: too few witnesses answer; care and "
                "delivery go on"
            )
        lines.append(Line("quorum", "behind" if late else "ok", not late, words))
    return Overview(size, board.witnessed, tuple(lines))


def when(at: int | None) -> str:
    """Write POSIX seconds for people."""
    if at is None:
        return "no time"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
