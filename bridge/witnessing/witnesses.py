"""The log asks its witnesses: one exchange, what an answer means, and what follows from it.

    checkpoint published → POST to each witness → cosignature verified → quorum →
    `checkpoint.witnessed` replaced

Each witness has a loop of its own in the service; none holds up another, the publisher or care.
All are asked for the same checkpoint, the *round*, until the quorum holds or the round is old, so
that signatures meet on one size while the log grows. Nothing that a witness says is believed: a
cosignature counts once it verifies, a contradiction is looked at (it shows the checkpoint it
holds) and told, and changes nothing but what is told.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from bridge import ambient, logs, metrics
from bridge.peers.witness import Answer, NoAnswer, ask
from bridge.quorum import Partner, asked, of_site, partners
from bridge.record import Recorder
from bridge.site import Ledger, Site
from bridge.witnessing import standing
from bridge.witnessing.standing import Board, Overview, Standing, State
from ledger import durable, leaf, note, witness
from ledger.checkpoint import Checkpoint
from ledger.errors import Malformed, MalformedNote, SignatureInvalid
from ledger.log import WITNESSED, Log
from ledger.policy import Policy

__all__ = ["WITNESSED", "Found", "Outside", "Witnesses", "exchange", "of_log", "seen"]

_TRIES = 3
_SKEW = 3600
_ROUND = 5.0
_IDLE, _SLOWEST = 0.5, 60.0
_CHANGES, _HOUR = 8, 3600.0
_WORST = (State.SPLIT, State.ROLLED_BACK)

Door = Callable[[str, str, bytes | None], Answer | NoAnswer]
"""How a witness is reached: (method, URL, body); `bridge.peers.witness.ask`."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an exchange came to. `state` None: nothing was said that lasts; ask again.

    `size` is how much of our log the witness says to have seen, None where it did not say.
    """

    state: State | None
    reason: str
    size: int | None = None
    lines: tuple[note.Line, ...] = ()
    time: int | None = None
    evidence: str = ""


def exchange(partner: Partner, log: Log, signed: str, old: int, door: Door, now: int) -> Found:
    """Ask one witness to cosign `signed`, a published checkpoint of ours, at POSIX time `now`.

    `old` is the size that we believe it has; it is told better by 409, at most a few times.
    Raises LedgerError where our own tiles cannot be read.
    """
    point = Checkpoint.parse(note.parse(signed)[0])
    tried: list[int] = []
    while old not in tried and len(tried) < _TRIES:
        tried.append(old)
        request = witness.Request(old, tuple(log.consistency(old, point.size)), signed)
        answer = door("POST", f"{partner.url}/add-checkpoint", str(request).encode())
        if isinstance(answer, NoAnswer):
            return Found(None, answer.code)
        told = witness.conflict(answer.media_type, answer.body) if answer.status == 409 else None
        if told is None:
            return _meaning(partner, log, signed, old, answer, door, now)
        if told > point.size:
            if told <= log.size():
                return Found(None, "moved", told)  # a newer checkpoint of ours got there before
            return _contradiction(partner, log, told, door)
        old = told
    return Found(State.REFUSED, "conflict-loop")


def _meaning(
    partner: Partner, log: Log, signed: str, old: int, answer: Answer, door: Door, now: int
) -> Found:
    if answer.status == 200:
        return _cosigned(partner, signed, answer.body, now)
    if answer.status in (409, 422):
        return _contradiction(partner, log, old, door)
    if answer.status >= 500 or answer.status in (408, 429):
        return Found(None, f"status-{answer.status}")
    known = {400: "bad-request", 403: "signature", 404: "unknown-log"}
    return Found(State.REFUSED, known.get(answer.status, f"status-{answer.status}"))


def _cosigned(partner: Partner, signed: str, body: bytes, now: int) -> Found:
    try:
        signatures = witness.cosignatures(signed, body, partner.keys)
    except SignatureInvalid:
        return Found(State.REFUSED, "bad-cosignature")
    except MalformedNote:
        return Found(State.REFUSED, "bad-answer")
    times = [time for _, _, time in signatures]
    if any(abs(time - now) > _SKEW for time in times):
        return Found(State.REFUSED, "clock")
    size = Checkpoint.parse(note.parse(signed)[0]).size
    return Found(State.OK, "", size, tuple(line for line, _, _ in signatures), max(times))


def _contradiction(partner: Partner, log: Log, told: int, door: Door) -> Found:
    """Look at what a witness holds that does not go with our log; it may also be lying."""
    size = log.size()
    claim = State.ROLLED_BACK if told > size else State.SPLIT
    answer = door("GET", f"{partner.url}/{witness.address(log.origin)}/checkpoint", None)
    if isinstance(answer, NoAnswer) or answer.status != 200:
        return Found(claim, "claimed", told)
    keys = [note.Verifier(s.name, s.algorithm, s.public) for s in log.signers]
    try:
        shown = answer.body.decode()
        point = Checkpoint.parse(note.parse(shown)[0])
        witness.authentic(shown, keys)
    except (UnicodeDecodeError, Malformed, SignatureInvalid):
        return Found(claim, "claimed", told)
    if point.origin != log.origin:
        return Found(claim, "claimed", told)
    if point.size > size:
        return Found(State.ROLLED_BACK, "shown", point.size, evidence=shown)
    if log.root(point.size) != point.root:
        return Found(State.SPLIT, "shown", point.size, evidence=shown)
    return Found(State.REFUSED, "unfounded", point.size)


@dataclass(slots=True)
class _Round:
    """One checkpoint that all witnesses are asked for, and who has signed it."""

    signed: str
    size: int
    until: float
    lines: dict[str, tuple[note.Line, ...]] = field(default_factory=dict)
    over: bool = False


@dataclass(frozen=True, slots=True)
class Outside:
    """What comes from the house: the door to witnesses, how a leaf is said, the clocks.

    `leaf` takes the leaf's key and the body of a witness.status.
    """

    door: Door
    leaf: Callable[[str, Mapping[str, object]], object]
    now: Callable[[], datetime]
    monotonic: Callable[[], float]


class Witnesses:
    """All witnesses of one log. `ask` is called by one thread per partner."""

    def __init__(self, log: Log, policy: Policy, lag: timedelta, outside: Outside) -> None:
        self.partners = partners(policy)
        self._log = log
        self._policy = policy
        self._lag = int(lag.total_seconds())
        self._outside = outside
        self._lock = threading.Lock()
        self._round: _Round | None = None
        self._failures: dict[str, int] = {}
        self._board = standing.read(log.folder)
        said = [leaf.parse(log.leaf(one))["body"] for one, _ in log.select(type="witness.status")]
        self._said = {str(body["witness"]): str(body["state"]) for body in said}
        self._said_at: dict[str, deque[float]] = {}
        self._leaves = len(said)

    def ask(self, partner: Partner) -> float:
        """Ask one witness if there is something to sign; how many seconds to wait then.

        Raises LedgerError where our own files fail; a witness's faults are outcomes.
        """
        with self._lock:
            aim = self._aim()
            before = self._board.witnesses.get(partner.name, Standing())
            if aim is None or partner.name in aim.lines:
                self._say(partner.name, before)
                return _IDLE
        now = int(self._outside.now().timestamp())
        old = min(before.size, aim.size)
        found = exchange(partner, self._log, aim.signed, old, self._outside.door, now)
        with self._lock:
            self._note(partner, aim, found, now)
            if found.state is State.OK or found.reason == "moved":
                self._failures[partner.name] = 0
                return _IDLE
            count = self._failures[partner.name] = self._failures.get(partner.name, 0) + 1
            return min(_SLOWEST, 2.0 ** min(count, 10) / 2)

    def _aim(self) -> _Round | None:
        """Give the checkpoint to be cosigned now, None before the first."""
        current, newest = self._round, self._log.checkpoint_text()
        if not newest:
            return None
        if current is not None:
            stale = current.over or self._outside.monotonic() > current.until
            if newest == current.signed or not stale:
                return current
        self._round = self._begin(newest)
        return self._round

    def _begin(self, newest: str) -> _Round:
        """Begin with a checkpoint; who signed it before we were started need not do it again."""
        size = Checkpoint.parse(note.parse(newest)[0]).size
        begun = _Round(newest, size, self._outside.monotonic() + _ROUND)
        published, cosigned = self._witnessed()
        if published == size and cosigned.startswith(newest):
            begun.over = True
            lines = note.parse(cosigned)[1]
            for one in self.partners:
                keys = {(key.name, key.key_id) for key in one.keys}
                mine = tuple(line for line in lines if (line.name, line.key_id) in keys)
                known = self._board.witnesses.get(one.name, Standing())
                if mine and known.state is State.OK:
                    begun.lines[one.name] = mine
        return begun

    def _witnessed(self) -> tuple[int, str]:
        """(size, text) of `checkpoint.witnessed`; (0, "") where there is none to be read."""
        try:
            text = (self._log.folder / WITNESSED).read_text(encoding="utf-8")
            return Checkpoint.parse(note.parse(text)[0]).size, text
        except (FileNotFoundError, UnicodeDecodeError, Malformed):
            return 0, ""

    def _note(self, partner: Partner, aim: _Round, found: Found, now: int) -> None:
        name, newest = partner.name, self._log.size()
        before = self._board.witnesses.get(name, Standing())
        lacking: int | None = before.lacking or now
        if found.state is State.OK:
            lacking = None if aim.size >= newest else now  # what came since is younger than this
        after = replace(
            before, lacking=lacking,
            size=before.size if found.size is None else found.size,
            cosigned=before.cosigned if found.time is None else found.time,
        )  # fmt: skip
        if found.state is not None:
            after = replace(after, state=found.state, reason=found.reason)
        elif lacking is not None and now - lacking > self._lag and before.state not in _WORST:
            after = replace(after, state=State.BEHIND, reason=found.reason)
        if found.evidence:
            standing.keep_evidence(self._log.folder, name, found.evidence)
        self._tell(name, before, after, newest)
        if found.reason == "moved":
            aim.over = True
        if found.lines:
            aim.lines[name] = found.lines
        board = replace(self._board, witnesses={**self._board.witnesses, name: after})
        self._keep(self._count(aim, board, newest, now))
        metrics.WITNESS_LAG.labels(name).set(0 if lacking is None else now - lacking)

    def _tell(self, name: str, before: Standing, after: Standing, newest: int) -> None:
        metrics.WITNESS_BEHIND.labels(name).set(max(0, newest - after.size))
        for state in State:
            metrics.WITNESS_STATE.labels(name, str(state)).set(after.state is state)
        if (after.state, after.reason) != (before.state, before.reason):
            log = logs.get()
            say = log.info if after.state in (State.OK, State.NEW) else log.error
            say("witness.status", where=name, state=str(after.state), code=after.reason or "ok",
                size=after.size, count=newest)  # fmt: skip
        self._say(name, after)

    def _say(self, name: str, after: Standing) -> None:
        """Say a new state in the log, of each witness at most _CHANGES an hour.

        Else one that says yes and no in turn would fill our log. What it showed, signed by our
        own keys, is said at once; the rest of such an hour is in our log lines only.
        """
        if after.state is State.NEW or self._said.get(name) == after.state:
            return
        at, told = self._outside.monotonic(), self._said_at.setdefault(name, deque(maxlen=_CHANGES))
        if after.reason == "shown" or len(told) < _CHANGES or at - told[0] >= _HOUR:
            body: dict[str, object] = {"witness": name, "state": str(after.state)}
            body |= {"size": after.size, "behind": max(0, self._log.size() - after.size)}
            if after.reason:
                body["reason"] = after.reason
            # The state is in the key: if this was said and nobody was told, another state that
            # comes next is still another leaf.
            self._outside.leaf(f"witness/{name}/{self._leaves}/{after.state}", body)
            self._said[name] = str(after.state)
            told.append(at)
            self._leaves += 1

    def _count(self, aim: _Round, board: Board, newest: int, now: int) -> Board:
        """Publish `checkpoint.witnessed` where this round has its quorum."""
        text = aim.signed + "".join(str(line) for lines in aim.lines.values() for line in lines)
        verdict = self._policy.judge(text)
        witnessed, _ = self._witnessed()
        reached = aim.lines and verdict.reached and aim.size >= witnessed
        if reached:
            path = self._log.folder / WITNESSED
            durable.write({path: text.encode()}, self._log.folder / ".witness" / "tmp")
            aim.over, witnessed = True, aim.size
        metrics.WITNESSED.set(witnessed)
        waiting = now if reached else board.lacking or now
        return replace(board, witnessed=witnessed, lacking=None if witnessed >= newest else waiting)

    def _keep(self, board: Board) -> None:
        if board != self._board:
            standing.write(self._log.folder, board)
            self._board = board


def seen(site: Site, size: int, now: datetime) -> Overview:
    """Say how the witnesses of a site stand, from what the service keeps; `size` is published."""
    names = [one.name for one in partners(asked(site.ledger.witnesses))]
    lag = timedelta(minutes=site.ledger.witness_lag_minutes)
    board = standing.read(site.folder / "ledger")
    return standing.overview(board, names, size, lag, int(now.timestamp()))


def of_log(record: Recorder, settings: Ledger) -> Witnesses:
    """Make the witnesses of a site's log, asked over HTTP by the house's clocks."""
    policy = of_site(
        [note.vkey(signer) for signer in record.log.signers], asked(settings.witnesses)
    )
    outside = Outside(
        door=ask,
        leaf=lambda idem, body: record.say("witness.status", idem, body),
        now=ambient.now,
        monotonic=ambient.monotonic,
    )
    lag = timedelta(minutes=settings.witness_lag_minutes)
    return Witnesses(record.log, policy, lag, outside)
