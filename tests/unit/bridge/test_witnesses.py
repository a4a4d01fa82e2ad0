"""The log asks its witnesses: what each answer means, told once, believed never."""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge import quorum
from bridge.peers.witness import Answer, NoAnswer
from bridge.witnessing import standing, witnesses
from bridge.witnessing.standing import State
from bridge.witnessing.witnesses import WITNESSED, Outside, Witnesses
from ledger import cosigner, leaf, note
from ledger.checkpoint import Checkpoint
from ledger.cosigner import Cosigner
from ledger.policy import Policy
from ledger.witness import SIZE_TYPE, Request, address

_TESTS = Path(__file__).resolve().parents[2]
if "paper_log" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("paper_log", _TESTS / "paper_log.py")
    sys.modules["paper_log"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["paper_log"])
import paper_log as paper  # noqa: E402

LAG = timedelta(minutes=60)
KEYS = [note.Verifier(s.name, s.algorithm, s.public) for s in paper.signers()]


class Hospital:
    """A real cosigner behind a door that can be made to answer anything."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.url = name, f"https://{name}.example/witness"
        self.signers = [
            note.Ed25519Cosigner.generate(f"w.{name}.example", paper.seed(name)),
            note.MLDSA44Signer.generate(f"w.{name}.example", paper.seed(name)),
        ]
        self.path = folder / f"{name}.db"
        cosigner.create(self.path)
        self.cosigner = Cosigner(self.path, self.signers, lambda: {paper.ORIGIN: KEYS})
        self.lie = None
        self.asked: list[tuple[str, str]] = []

    @property
    def line(self) -> str:
        return f"witness {self.name} {note.vkey(self.signers[0])} {self.url}"

    def answer(self, method, url, body, time):
        self.asked.append((method, url))
        if self.lie is not None:
            said = self.lie(method, url, body)
            if said is not None:
                return said
        if method == "GET":
            text = self.cosigner.checkpoint(url.split("/")[-2])
            return Answer(404, "", b"") if text is None else Answer(200, "", text.encode())
        reply = self.cosigner.add_checkpoint(body, time)
        return Answer(reply.status, reply.media_type, reply.body.encode())


class Ward:
    """A paper log, its hospitals, and the clock."""

    def __init__(self, folder: Path, names=("north",), extra=()) -> None:
        self.site = paper.Site(folder)
        self.hospitals = {name: Hospital(folder, name) for name in names}
        self.time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.lines = [one.line for one in self.hospitals.values()] + list(extra)
        self.policy = quorum.of_site(paper.VKEYS, quorum.of_lines(self.lines))
        self.restart()
        self.grow()

    def restart(self) -> None:
        self.witnesses = Witnesses(
            self.site.log, self.policy, LAG,
            Outside(self._door, self._leaf, lambda: self.time, lambda: self.time.timestamp()),
        )  # fmt: skip

    def _door(self, method, url, body):
        one = next(h for h in self.hospitals.values() if url.startswith(h.url + "/"))
        return one.answer(method, url, body, int(self.time.timestamp()))

    def _leaf(self, idem, body):
        return self.site.say("witness.status", body, idem=idem)

    def grow(self, count=3) -> None:
        self.site.fill(count)
        self.site.publish()

    def pass_(self, seconds=6.0, publish=True) -> None:
        """Each witness is asked once, later than the last round's time."""
        self.time += timedelta(seconds=seconds)
        for partner in self.witnesses.partners:
            self.witnesses.ask(partner)
        if publish:
            self.site.publish()

    def settle(self) -> None:
        """Ask until the leaf about a change is under the witnesses too."""
        for _ in range(4):
            self.pass_()

    def of(self, name="north") -> standing.Standing:
        return standing.read(self.site.folder).witnesses[name]

    def said(self) -> list[tuple[str, str]]:
        bodies = [
            leaf.parse(self.site.log.leaf(one))["body"]
            for one, _ in self.site.log.select(type="witness.status")
        ]
        return [(body["state"], body.get("reason", "")) for body in bodies]

    def witnessed(self) -> tuple[int, set[str]]:
        """(size, names of the witnesses that signed it) of checkpoint.witnessed, verified."""
        path = self.site.folder / WITNESSED
        if not path.exists():
            return 0, set()
        verdict = Policy.parse(str(self.policy)).judge(path.read_text())
        assert verdict.reached
        return verdict.checkpoint.size, set(verdict.cosigned)


def test_a_cosigned_checkpoint_is_published_beside_the_plain_one(tmp_path):
    ward = Ward(tmp_path)
    plain = ward.site.log.checkpoint_text()
    ward.pass_(publish=False)
    assert ward.site.log.checkpoint_text() == plain
    cosigned = (ward.site.folder / WITNESSED).read_text()
    assert cosigned.startswith(plain)
    assert ward.witnessed() == (4, {"north"})
    assert ward.said() == [("ok", "")]
    ward.settle()
    size = ward.site.log.size()
    assert ward.witnessed() == (size, {"north"})
    assert ward.of().size == size
    assert ward.of().lacking is None
    assert ward.said() == [("ok", "")]  # said on change only
    asked = len(ward.hospitals["north"].asked)
    ward.pass_()
    assert len(ward.hospitals["north"].asked) == asked  # nothing new, nobody is asked


def test_it_grows_with_the_log(tmp_path):
    ward = Ward(tmp_path)
    ward.settle()
    for count in (1, 250, 300):
        ward.grow(count)
        ward.pass_()
        assert ward.witnessed()[0] == ward.site.log.size()


def test_a_majority_is_needed_and_one_may_be_down(tmp_path):
    ward = Ward(tmp_path, ("north", "south", "west"))
    ward.hospitals["west"].lie = lambda *_: NoAnswer("unreachable")
    ward.hospitals["south"].lie = lambda *_: NoAnswer("unreachable")
    ward.settle()
    assert ward.witnessed() == (0, set())
    ward.hospitals["south"].lie = None
    ward.settle()
    assert ward.witnessed() == (ward.site.log.size(), {"north", "south"})
    ward.hospitals["west"].lie = None
    ward.grow()
    ward.settle()
    assert ward.witnessed() == (ward.site.log.size(), {"north", "south", "west"})


def test_a_slow_witness_still_meets_the_others_on_one_size(tmp_path):
    ward = Ward(tmp_path, ("north", "south"))
    north, south = ward.witnesses.partners
    ward.witnesses.ask(north)  # signs size 4
    ward.grow()
    ward.witnesses.ask(north)  # the round is young: nothing newer is begun
    ward.witnesses.ask(south)  # so both are on size 4
    assert ward.witnessed() == (4, {"north", "south"})


def test_a_late_signature_joins_the_same_checkpoint(tmp_path):
    ward = Ward(tmp_path, ("north", "south", "west"))
    for partner in ward.witnesses.partners[:2]:
        ward.witnesses.ask(partner)
    assert ward.witnessed() == (4, {"north", "south"})
    ward.witnesses.ask(ward.witnesses.partners[2])
    assert ward.witnessed() == (4, {"north", "south", "west"})


def test_a_restart_asks_nobody_again_and_says_nothing_twice(tmp_path):
    ward = Ward(tmp_path)
    ward.settle()
    asked = len(ward.hospitals["north"].asked)
    ward.restart()
    ward.pass_()
    assert len(ward.hospitals["north"].asked) == asked
    (ward.site.folder / ".witness" / "state.json").write_text("{ damaged")
    ward.restart()
    ward.settle()
    assert ward.said() == [("ok", "")]
    assert ward.of().state is State.OK


def test_a_cosignature_that_nobody_heard_of_is_found_by_its_size(tmp_path):
    ward = Ward(tmp_path)
    lost = []

    def lose(_method, _url, body):
        if not lost:
            lost.append(ward.hospitals["north"].cosigner.add_checkpoint(body, 1))
            return NoAnswer("time-out")
        return None

    ward.hospitals["north"].lie = lose
    ward.pass_()
    assert lost[0].status == 200
    assert ward.witnessed() == (0, set())
    ward.pass_()
    assert ward.witnessed()[0] == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(404, "text/plain", b"no\n"), "unknown-log"),
        (Answer(403, "text/plain", b"no\n"), "signature"),
        (Answer(400, "text/plain", b"no\n"), "bad-request"),
        (Answer(302, "text/html", b""), "status-302"),
        (Answer(200, "text/plain", b"<html>hello</html>"), "bad-answer"),
        (Answer(200, "text/plain", b""), "bad-answer"),
        (Answer(200, "text/plain", "— w x\n".encode()), "bad-answer"),
        (Answer(409, SIZE_TYPE, b"2\n"), "conflict-loop"),
    ],
)
def test_a_refusal_is_told_at_once_and_harms_nothing(tmp_path, answer, reason):
    ward = Ward(tmp_path)
    ward.hospitals["north"].lie = lambda *_: answer
    ward.settle()
    assert (ward.of().state, ward.of().reason) == (State.REFUSED, reason)
    assert ward.said() == [("refused", reason)]
    assert ward.witnessed() == (0, set())
    ok, words = standing.tell("north", ward.of(), ward.site.log.size())
    assert not ok
    assert len(words) > 20
    ward.hospitals["north"].lie = None
    ward.settle()
    assert ward.said() == [("refused", reason), ("ok", "")]
    assert ward.witnessed()[0] == ward.site.log.size()


def test_a_conflict_loop_ends_after_a_few_questions(tmp_path):
    ward = Ward(tmp_path)
    told = iter(range(1, 100))
    ward.hospitals["north"].lie = lambda *_: Answer(409, SIZE_TYPE, b"%d\n" % (next(told) % 4))
    ward.pass_()
    assert len(ward.hospitals["north"].asked) <= 3
    assert ward.of().reason == "conflict-loop"


def _forge(signer, text, time):
    line = note.Line(signer.name, signer.key_id, signer.sign(text.encode(), time))
    return Answer(200, "text/plain", str(line).encode())


def test_a_false_cosignature_is_never_published(tmp_path):
    ward = Ward(tmp_path)
    north = ward.hospitals["north"]
    now = int(ward.time.timestamp())

    def other_text(*_):
        return _forge(north.signers[0], f"{paper.ORIGIN}\n9\n{'A' * 43}=\n", now)

    def stranger(_method, _url, body):
        key = note.Ed25519Cosigner.generate(north.signers[0].name, paper.seed("evil"))
        return _forge(key, note.parse(Request.parse(body).note)[0], now)

    def late(_method, _url, body):
        return _forge(north.signers[0], note.parse(Request.parse(body).note)[0], now - 90_000)

    for lie, reason in ((other_text, "bad-cosignature"), (stranger, "bad-cosignature"),
                        (late, "clock")):  # fmt: skip
        north.lie = lie
        ward.settle()
        assert (ward.of().state, ward.of().reason) == (State.REFUSED, reason)
        assert ward.witnessed() == (0, set())
    assert [state for state, _ in ward.said()] == ["refused"]  # one state, however it lies


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NoAnswer("unreachable"), "unreachable"),
        (NoAnswer("time-out"), "time-out"),
        (NoAnswer("too-large"), "too-large"),
        (Answer(500, "text/html", b""), "status-500"),
        (Answer(503, "text/plain", b""), "status-503"),
        (Answer(429, "text/plain", b""), "status-429"),
    ],
)
def test_silence_is_an_alarm_only_after_the_lag(tmp_path, answer, reason):
    ward = Ward(tmp_path)
    ward.settle()
    ward.hospitals["north"].lie = lambda *_: answer
    ward.grow()
    ward.pass_()
    ward.pass_(60 * 59)
    assert ward.of().state is State.OK
    assert ward.said() == [("ok", "")]
    ward.pass_(120)
    assert (ward.of().state, ward.of().reason) == (State.BEHIND, reason)
    ward.pass_(3600)
    assert ward.said() == [("ok", ""), ("behind", reason)]
    ward.hospitals["north"].lie = None
    ward.settle()
    assert [state for state, _ in ward.said()] == ["ok", "behind", "ok"]


def test_the_pause_grows_while_nothing_answers(tmp_path):
    ward = Ward(tmp_path)
    ward.hospitals["north"].lie = lambda *_: NoAnswer("unreachable")
    (partner,) = ward.witnesses.partners
    pauses = [ward.witnesses.ask(partner) for _ in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60.0


def test_one_that_says_yes_and_no_in_turn_does_not_fill_our_log(tmp_path):
    ward = Ward(tmp_path)
    north, asked = ward.hospitals["north"], []

    def lie(*question):
        asked.append(question)
        return Answer(403, "text/plain", b"") if len(asked) % 2 else None

    north.lie = lie
    for _ in range(200):
        ward.grow(1)
        ward.pass_(10.0)
    assert len(asked) > 100
    assert 2 < len(ward.said()) <= 8  # in 34 minutes
    before = len(ward.said())
    for _ in range(3):
        ward.grow(1)
        ward.pass_(3600.0)
    assert len(ward.said()) > before


def _rewound(ward: Ward, folder: Path, last: str = "") -> Ward:
    """The same site from an older copy: same keys, same witness, shorter log."""
    older = object.__new__(Ward)
    older.__dict__.update(ward.__dict__)
    folder.mkdir()
    older.site = paper.Site(folder)
    older.site.fill(2 if last else 3)
    if last:
        older.site.say("config.changed", {"digest": last})
    older.site.publish()
    older.restart()
    return older


def test_a_roll_back_is_seen_and_shown(tmp_path):
    ward = Ward(tmp_path)
    ward.grow(20)
    ward.settle()
    seen = ward.of().size
    older = _rewound(ward, tmp_path / "older")
    older.pass_()
    assert (older.of().state, older.of().reason) == (State.ROLLED_BACK, "shown")
    assert older.of().size == seen
    assert older.said() == [("rolled-back", "shown")]
    evidence = (older.site.folder / ".witness" / "north.note").read_text()
    assert Checkpoint.parse(note.parse(evidence)[0]).size == seen
    ok, words = standing.tell("north", older.of(), older.site.log.size())
    assert not ok
    assert "radseal ledger continue NEW_ORIGIN" in words
    before = older.site.log.size()
    older.grow()
    assert older.site.log.size() > before  # care, and its log, go on
    assert older.witnessed() == (0, set())


def test_a_roll_back_that_grew_past_it_is_a_split_view(tmp_path):
    ward = Ward(tmp_path)
    ward.grow(20)
    ward.settle()
    older = _rewound(ward, tmp_path / "older")
    older.site.say("config.changed", {"digest": "ee" * 32})
    older.grow(60)
    older.pass_()
    assert (older.of().state, older.of().reason) == (State.SPLIT, "shown")
    older.settle()
    assert older.said() == [("split", "shown")]
    assert older.witnessed() == (0, set())


def test_one_size_with_two_roots_is_a_split_view(tmp_path):
    ward = Ward(tmp_path)
    ward.pass_(publish=False)
    twin = _rewound(ward, tmp_path / "twin", last="ee" * 32)  # one leaf is another one
    assert twin.site.log.size() == ward.of().size
    twin.pass_()
    assert (twin.of().state, twin.of().reason) == (State.SPLIT, "shown")
    assert ward.hospitals["north"].cosigner.kept()[0].split is not None


def test_a_witness_that_only_claims_is_told_apart(tmp_path):
    ward = Ward(tmp_path)
    ward.settle()
    size = ward.site.log.size()
    honest = ward.hospitals["north"].cosigner.checkpoint(address(paper.ORIGIN))

    def claim(status, kind, body, shown):
        def lie(method, *_):
            return shown if method == "GET" else Answer(status, kind, body)

        return lie

    forged = note.sign_note(
        f"{paper.ORIGIN}\n999\n{'A' * 43}=\n", paper.signers(name="somebody else"), 7
    )
    for lie, state, reason in (
        (claim(409, SIZE_TYPE, b"999\n", NoAnswer("unreachable")), "rolled-back", "claimed"),
        (claim(409, SIZE_TYPE, b"999\n", Answer(404, "", b"")), "rolled-back", "claimed"),
        (claim(409, SIZE_TYPE, b"999\n", Answer(200, "", forged.encode())), "rolled-back",
         "claimed"),
        (claim(422, "", b"", Answer(200, "", b"\xff")), "split", "claimed"),
        (claim(409, "text/plain", b"", Answer(200, "", b"")), "split", "claimed"),
        (claim(422, "", b"", Answer(200, "", honest.encode())), "refused", "unfounded"),
        (claim(409, SIZE_TYPE, b"999\n", Answer(200, "", honest.encode())), "refused",
         "unfounded"),
    ):  # fmt: skip
        ward.hospitals["north"].lie = lie
        ward.grow(1)
        ward.pass_()
        assert (ward.of().state, ward.of().reason) == (State(state), reason)
        assert not (ward.site.folder / ".witness" / "north.note").exists()
        assert "ask" in standing.tell("north", ward.of(), size)[1]
    ward.hospitals["north"].lie = None
    ward.settle()
    assert ward.of().state is State.OK


def test_a_leaf_that_failed_is_said_again_and_counts_once(tmp_path):
    ward = Ward(tmp_path)
    real, failing = ward._leaf, [True]

    def leaf_(idem, body):
        done = real(idem, body)  # it happened, and nobody was told
        if failing.pop() if failing else False:
            raise OSError("the answer was lost")
        return done

    ward._leaf = leaf_
    ward.restart()
    (partner,) = ward.witnesses.partners
    with pytest.raises(OSError, match="lost"):
        ward.witnesses.ask(partner)
    ward.site.publish()
    ward.settle()
    assert ward.said() == [("ok", "")]


def test_the_overview_says_the_quorum_too(tmp_path):
    ward = Ward(tmp_path, ("north", "south"))
    ward.hospitals["south"].lie = lambda *_: NoAnswer("unreachable")
    ward.pass_()
    names, size = ["north", "south"], ward.site.log.size()

    def told(later):
        now = int(ward.time.timestamp()) + later
        return standing.overview(standing.read(ward.site.folder), names, size, LAG, now)

    assert [(one.name, one.state) for one in told(0).lines] == [
        ("north", "ok"), ("south", "new"), ("quorum", "ok"),
    ]  # fmt: skip
    assert told(0).ok
    assert [one.ok for one in told(4000).lines] == [True, True, False]
    assert "delivery go on" in told(4000).lines[-1].words
    assert standing.overview(standing.Board(), [], 5, LAG, 0).lines == ()


def test_every_state_has_words_for_people():
    for state in State:
        ok, words = standing.tell("north", standing.Standing(state, "shown", 3, 1, 1), 5)
        assert ok == (state in (State.NEW, State.OK))
        assert words
    assert witnesses.WITNESSED == "checkpoint.witnessed"
