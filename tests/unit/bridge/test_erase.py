"""bridge.erasure: two people, then nothing of the patient is left, whatever crashes on the way."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from bench import ANNA, BERT, NOBODY, Bench, Kept, changed, consent, copies, every, images

from bridge import acts, ambient, grant, permit, turns
from bridge.consent.document import parse
from bridge.engine import EngineClient
from bridge.erasure import erase, erasing
from bridge.erasure.erasing import Whose
from bridge.errors import NotFound, Refused, WrongUse
from bridge.files import Files
from bridge.store import arrivals, erasure, tables, work
from bridge.store.database import reading
from bridge.store.erasure_requests import RequestState
from bridge.study import Patient, StudyState
from bridge.vault import Vault
from ledger.log import Log

PACS = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
NO_PICTURE = {"deployment": {"results": {"secondary_capture": False}}}
UID = str(images(1)[0].StudyInstanceUID)
HIS = Whose(Patient("GH", "A-1"))
HER = Whose(Patient("GH", "B-2"))


def ask(desk: Bench, whose: Whose = HIS, **options: Any) -> Any:
    said = {"by": "dr-a", "account": "pc1", "basis": erase.BASIS, "new_id": ambient.new_id()[:12]}
    return erase.request(desk.rooms, whose, **{**said, **options})


def gone(desk: Bench, whose: Whose = HIS) -> Any:
    """Ask and confirm."""
    row, _, _ = ask(desk, whose)
    return erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")


def keep(desk: Bench, answer: str, patient: Any = ANNA, **options: Any) -> str:
    data = consent(answer, patient, **options)
    return grant.keep(desk.rooms, data, parse(data), None, by="clerk")


def read(desk: Bench, patient: Any = ANNA, study: str = "study", count: int = 3) -> str:
    """Receive and walk a study; returns its UID."""
    sent = images(count, study=study, patient=patient)
    desk.receive(*sent)
    uid = str(sent[0].StudyInstanceUID)
    desk.walk(uid)
    return uid


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def heard(folder: Path, *names: str) -> list[tuple[str, str]]:
    """Which names stand in which files of the site, in one or two bytes a letter."""
    return [
        (file, name)
        for file, data in everything(folder).items()
        for name in names
        if name.encode() in data or name.encode("utf-16-le") in data
    ]


def sop_uids(*datasets: Any) -> list[str]:
    return [str(one.SOPInstanceUID) for one in datasets]


@pytest.fixture(scope="module")
def read_once(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    desk = Bench(tmp_path_factory.mktemp("read"), PACS)
    desk.model(NO_PICTURE)
    keep(desk, "permit")
    read(desk)
    read(desk, BERT, "other")
    return Kept(desk)


@pytest.fixture
def read_desk(read_once: Kept, copy_of: Callable[[Kept], Bench]) -> Bench:
    """A site that has read a study of Anna and one of Bert."""
    return copy_of(read_once)


def test_one_person_asks_and_nothing_changes(read_desk: Bench) -> None:
    before = {name: len(read_desk.rows(name)) for name in tables.METADATA.tables}
    row, found, left = ask(read_desk)
    assert (len(found.own), found.images, len(found.artifacts), found.consents) == (1, 3, 2, 1)
    assert left == []  # nobody answered at the PACS
    after = {name: len(read_desk.rows(name)) for name in tables.METADATA.tables}
    assert after == {**before, "erasures": 1}
    assert not heard(read_desk.settings.folder, row.id) or "subject.erased" not in {
        leaf["type"] for leaf in read_desk.leaves()
    }


def test_a_second_person_confirms_and_nothing_is_left(read_desk: Bench) -> None:
    desk = read_desk
    names = ["Alpha", "Anna", UID, *sop_uids(*images(3))]
    canaries = {name for _, name in heard(desk.settings.folder, *names)}
    assert canaries == set(names)
    route_id = next(r.id for r in desk.rows("routes") if r.study_id == desk.study(UID).id)
    done = gone(desk)
    assert done.state is RequestState.DONE
    assert (done.report["studies"], done.report["images"], done.report["results"]) == (1, 3, 2)
    assert heard(desk.settings.folder, *names) == []
    assert desk.work.status(f"route/{route_id}/1") is None
    desk.verify()
    (leaf,) = [one for one in desk.leaves() if one["type"] == "subject.erased"]
    assert leaf["body"] == {
        "basis": "Art. 17(1)(b)", "authn": "asserted", "by": ["dr-a", "dr-b"], "expiry": None,
    }  # fmt: skip
    assert leaf["actor"] == {"kind": "user", "id": "pc2"}
    of_him = [one for one in desk.leaves() if one.get("subject") == leaf["subject"]]
    assert {"study.received", "consent.granted", "result.composed"} <= {o["type"] for o in of_him}


def test_the_other_patient_keeps_everything(read_desk: Bench) -> None:
    desk = read_desk
    uid = str(images(1, study="other")[0].StudyInstanceUID)
    before = desk.story(uid)
    gone(desk)
    assert desk.story(uid) == before
    assert desk.states() == {"held": 3}
    study = desk.study(uid)
    for row in desk.rows("artifacts"):
        assert row.study_id == study.id
        assert (desk.settings.folder / row.file).exists()
    desk.finish(uid)
    gone(desk, HER)
    assert not desk.rows("studies")
    desk.verify()


@pytest.mark.parametrize("name", ["dr-a", "DR-A", " dr-a", "dr-a "])
def test_the_same_person_cannot_confirm(read_desk: Bench, name: str) -> None:
    row, _, _ = ask(read_desk)
    with pytest.raises((Refused, WrongUse)):
        erase.confirm(read_desk.rooms, row.id, by=name, account="pc2")
    assert read_desk.study(UID)


def test_a_request_can_be_withdrawn_and_expires(read_desk: Bench) -> None:
    desk = read_desk
    row, _, _ = ask(desk)
    with pytest.raises(Refused, match=row.id):
        ask(desk, by="dr-c")
    erase.withdraw(desk.rooms, row.id)
    with pytest.raises(Refused, match="withdrawn"):
        erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")
    with pytest.raises(Refused, match="withdrawn"):
        erase.withdraw(desk.rooms, row.id)
    late, _, _ = ask(desk)
    later = ambient.now() + erase.VALID_FOR + timedelta(seconds=1)
    desk.rooms.record.now = lambda: later
    with pytest.raises(Refused, match="expired"):
        erase.confirm(desk.rooms, late.id, by="dr-b", account="pc2")
    assert [one.state for one in erase.requests(desk.rooms)] == ["expired", "withdrawn"]
    assert {bytes(one.sealed) for one in desk.rows("erasures")} == {b""}
    with pytest.raises(NotFound):
        erase.confirm(desk.rooms, "unknown", by="dr-b", account="pc2")
    assert desk.study(UID)


def test_a_stranger_is_not_known_and_gets_no_key(read_desk: Bench) -> None:
    with pytest.raises(NotFound, match="nothing is kept"):
        ask(read_desk, Whose(Patient("GH", "TYPO-1")))
    assert read_desk.rooms.vault.known("GH", "TYPO-1") is None
    with pytest.raises(NotFound):
        ask(read_desk, Whose(Patient("elsewhere", "A-1")))


@pytest.mark.parametrize(
    "said",
    [
        {"basis": "because Mrs Alpha wrote a letter"},
        {"basis": "Art. 17 \n"},
        {"basis": "Art. 17 CANARY-9"},
        {"by": ""},
        {"by": "x" * 61},
        {"by": "dr\ta"},
        {"by": "dr CANARY-9"},
    ],
)  # fmt: skip
def test_what_stands_in_the_ledger_for_ever_is_no_free_text(
    read_desk: Bench, said: dict[str, str]
) -> None:
    with pytest.raises(WrongUse):
        ask(read_desk, Whose(Patient("GH", "CANARY-9")), **said)


@pytest.mark.parametrize(
    ("line", "patient"),
    [
        ("GH|A-1\n", Patient("GH", "A-1")),
        ("A-1", Patient("GH", "A-1")),
        ("|A-1", Patient("", "A-1")),
        ("a|b|C 1 ", Patient("a|b", "C 1")),
    ],
)
def test_the_patient_is_read_from_one_line(desk: Bench, line: str, patient: Patient) -> None:
    assert erase.named(desk.rooms, line, study=False).patient == patient


@pytest.mark.parametrize(
    ("line", "study"), [("", False), ("GH|", False), ("GH|1", True), ("x", True)]
)
def test_a_line_that_names_nobody_is_wrong_use(desk: Bench, line: str, study: bool) -> None:
    with pytest.raises(WrongUse):
        erase.named(desk.rooms, line, study=study)


# --- afterwards ------------------------------------------------------------------------------


def routes_of(desk: Bench, uid: str) -> list[Any]:
    study = desk.study(uid)
    return [r for r in desk.rows("routes") if r.study_id == study.id]


def test_the_next_study_is_received_and_denied_until_there_is_new_consent(
    read_desk: Bench,
) -> None:
    desk = read_desk
    gone(desk)
    uid = read(desk, study="later")
    assert desk.study(uid).state is StudyState.DENIED
    (route,) = routes_of(desk, uid)
    assert route.reason == "the patient's data was erased; the site denies this"
    last = [one for one in desk.leaves() if one["type"] == "consent.checked"][-1]
    assert (last["body"]["decision"], last["body"]["reason"]) == ("deny", "erased")
    keep(desk, "permit")
    again = read(desk, study="after consent")
    assert routes_of(desk, again)[0].state == "reported"
    desk.verify()


def test_neither_a_refusal_nor_an_unusable_document_lifts_it(read_desk: Bench) -> None:
    desk = read_desk
    gone(desk)
    refusal = keep(desk, "deny")
    grant.withdraw(desk.rooms, refusal)
    keep(desk, "permit", purpose="HRESCH")  # speaks of something else
    uid = read(desk, study="later")
    assert desk.study(uid).state is StudyState.DENIED


def test_consent_that_is_withdrawn_after_an_erasure_denies_again(read_desk: Bench) -> None:
    desk = read_desk
    gone(desk)
    grant.withdraw(desk.rooms, keep(desk, "permit"))
    uid = read(desk, study="later")
    assert desk.study(uid).state is StudyState.DENIED
    desk.verify()


def test_an_erased_patient_who_came_back_can_be_erased_again(read_desk: Bench) -> None:
    desk = read_desk
    gone(desk)
    keep(desk, "permit")
    read(desk, study="later")
    gone(desk)
    assert {row.patient_id for row in desk.rows("studies")} == {"B-2"}
    erased = [one["subject"] for one in desk.leaves() if one["type"] == "subject.erased"]
    assert len(set(erased)) == 2
    desk.verify()


def test_a_study_that_names_nobody_is_erased_by_its_uid(new_site: Callable[..., Bench]) -> None:
    desk = new_site('[consent]\nunidentified = "permit"\n')
    desk.model(NO_PICTURE)
    uid = read(desk, NOBODY)
    other = read(desk, NOBODY, "other")
    gone(desk, erase.named(desk.rooms, f"{uid}\n", study=True))
    assert heard(desk.settings.folder, uid, *sop_uids(*images(3))) == []
    assert desk.study(other)
    desk.receive(*images(3, patient=NOBODY))
    desk.walk(uid)
    assert desk.study(uid).state is StudyState.DENIED
    desk.verify()


# --- two identities, two patients ------------------------------------------------------------


def test_a_former_identity_goes_and_the_corrected_study_stays(
    new_site: Callable[..., Bench],
) -> None:
    desk = new_site(PACS)
    desk.model(NO_PICTURE)
    sent = images(3)
    desk.receive(*sent)
    desk.walk(UID)
    desk.receive(*every(sent, PatientID="B-2", PatientName="Beta^Bert"))
    assert desk.study(UID).patient == HER.patient
    own = read(desk, study="his own")
    _, found, _ = ask(desk)
    assert list(found.own.values()) == [own]
    assert list(found.shared.values()) == [UID]
    (row,) = erase.requests(desk.rooms)
    erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")
    assert heard(desk.settings.folder, "Alpha", "Anna", own) == []
    assert desk.states() == {"held": 3}  # Bert's copies
    assert not desk.rows("artifacts")  # they named Anna
    assert desk.study(UID).state is StudyState.ATTENTION
    assert desk.codes(UID)[-1] == "erased"
    desk.finish(UID)
    desk.receive(*images(4, patient=BERT)[3:])  # a late image opens the next generation
    desk.walk(UID)
    assert {r.generation: r.state for r in routes_of(desk, UID)} == {2: "reported"}
    desk.verify()


def test_the_corrected_patient_takes_the_study_along(new_site: Callable[..., Bench]) -> None:
    desk = new_site(PACS)
    desk.model(NO_PICTURE)
    sent = images(3)
    desk.receive(*sent)
    desk.walk(UID)
    desk.receive(*every(sent, PatientID="B-2", PatientName="Beta^Bert"))
    own = read(desk, study="his own")
    gone(desk, HER)
    assert heard(desk.settings.folder, "Beta", "Bert", UID) == []
    assert desk.study(own).state is StudyState.WORKING
    assert not desk.rooms.vault.suppressed("GH", "A-1")
    desk.verify()


@pytest.fixture(scope="module")
def two_patients_once(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    desk = Bench(tmp_path_factory.mktemp("two"), PACS)
    desk.model(NO_PICTURE)
    sent = images(4, patient=BERT)
    desk.receive(*sent[:3], changed(sent[3], PatientID="A-1", PatientName="Alpha^Anna"))
    desk.walk(UID)
    acts.accept(desk.rooms, UID, "clerk")
    desk.walk(UID)
    read(desk, study="his own")
    read(desk, BERT, "her own")
    return Kept(desk)


@pytest.fixture
def two_patients(two_patients_once: Kept, copy_of: Callable[[Kept], Bench]) -> Bench:
    """Bert's study, into which one image of Anna was accepted; both have a study of their own."""
    return copy_of(two_patients_once)


def test_of_a_study_of_somebody_else_only_ones_own_goes(two_patients: Bench) -> None:
    desk = two_patients
    assert desk.study(UID).others == (HIS.patient,)
    assert [r.generation for r in routes_of(desk, UID)] == [1, 2]
    assert heard(desk.settings.folder, "Alpha")
    gone(desk)
    assert heard(desk.settings.folder, "Alpha", "Anna", sop_uids(*images(4))[3]) == []
    assert desk.study(UID).others == ()
    # What was read before the image was accepted stands; what read it is gone.
    assert [r.generation for r in routes_of(desk, UID)] == [1]
    assert [r for r in desk.rows("instances") if r.patient_id == "A-1"] == []
    assert desk.states() == {"held": 6}
    desk.finish(UID)
    desk.verify()


def test_ones_own_study_goes_whole(two_patients: Bench) -> None:
    desk = two_patients
    gone(desk, HER)
    assert heard(desk.settings.folder, "Beta", "Bert", UID) == []
    assert [row.patient_id for row in desk.rows("studies")] == ["A-1"]
    assert desk.states() == {"held": 3}
    desk.verify()


# --- files on their way ----------------------------------------------------------------------


def test_the_inbox_and_rubbish_that_names_him_go_too(read_desk: Bench) -> None:
    desk = read_desk
    uid = str(images(1, study="other")[0].StudyInstanceUID)
    desk.receive(b"rubbish about (A-1) twice", f"rubbish of study {UID}.".encode(), b"B-2 only")
    laid = desk.lay(*images(2, study="new"), *images(2, study="hers", patient=BERT))
    named = desk.lay(f"cut off: {UID}".encode(), b"nothing")
    gone(desk)
    assert [path.exists() for path in (*laid, *named)] == [False, False, True, True, False, True]
    texts = {p.read_bytes() for p in (desk.settings.folder / "instances").rglob("*.dcm")
             if p.stat().st_size < 100}  # fmt: skip
    assert texts == {b"rubbish about (A-1) twice", b"B-2 only", b"nothing"}  # three letters: none
    while desk.indexer.index(desk.clock.steady()):
        pass
    assert {r.study_instance_uid for r in desk.rows("studies")} == {
        uid, str(images(1, study="hers")[0].StudyInstanceUID),
    }  # fmt: skip


def test_a_study_at_work_is_stopped_and_closed_in_the_log(new_site: Callable[..., Bench]) -> None:
    desk = new_site(PACS)
    desk.model(NO_PICTURE)
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    assert desk.run(route_id) is not None
    desk.rooms.work.enqueue("study", "study", f"study/{desk.study(UID).id}/1", "x", 1)
    gone(desk)
    types = Counter(one["type"] for one in desk.leaves())
    assert (types["study.received"], types["study.closed"]) == (1, 1)
    (closed,) = [one for one in desk.leaves() if one["type"] == "study.closed"]
    assert closed["body"]["outcome"] == "erased"
    assert desk.work.status(f"route/{route_id}/1") is None
    desk.verify()


def test_a_run_that_a_crash_left_open_is_ended_in_the_log(
    new_site: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = new_site(PACS)
    desk.model(NO_PICTURE)
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    monkeypatch.setattr("bridge.infer._execute", _crash)
    with pytest.raises(Crash):
        desk.run(route_id)
    gone(desk)
    (ended,) = [one for one in desk.leaves() if one["type"] == "inference.failed"]
    assert ended["body"]["reason"] == "erased"
    desk.verify()


def test_a_step_at_work_is_waited_for_and_the_service_goes_on(
    read_desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = read_desk
    monkeypatch.setattr(erase, "PATIENCE", 0.2)
    row, _, _ = ask(desk)
    with desk.rooms.files.turns.share(desk.study(UID).id):
        with pytest.raises(Refused, match="confirmed"):
            erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")
        assert desk.study(UID)  # nothing was taken from under the step
        with pytest.raises(turns.Busy):
            erase.go_on(desk.rooms, 0.1)
    assert erase.go_on(desk.rooms, 10) == 1
    assert erase.go_on(desk.rooms, 10) == 0
    assert heard(desk.settings.folder, "Alpha", UID) == []
    desk.verify()


def test_consent_given_while_it_is_erased_is_of_the_one_who_comes_back(read_desk: Bench) -> None:
    """The document is kept under the new key: no leaf about the old alias follows its erasure."""
    desk = read_desk
    gone(desk)
    keep(desk, "permit", text="new")
    erased = next(one for one in desk.leaves() if one["type"] == "subject.erased")
    index = desk.leaves().index(erased)
    assert all(one.get("subject") != erased["subject"] for one in desk.leaves()[index + 1 :])


def test_what_left_is_told_in_full_once_and_kept_as_numbers(
    new_site: Callable[..., Bench], archive: Callable[..., Any]
) -> None:
    pacs = archive("PACS")
    desk = new_site(pacs.toml())
    desk.model(NO_PICTURE)
    read(desk)
    row, _, left = ask(desk)
    assert {(one.destination, one.kind) for one in left} == {("pacs", "sr"), ("pacs", "seg")}
    assert {one.study_instance_uid for one in left} == {UID}
    told = erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2").report["left"]
    assert {one["sop_instance_uid"] for one in told} == {one.sop_instance_uid for one in left}
    again = erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")
    assert again.report["left"] == [
        {"destination": "pacs", "kind": "seg", "count": 1},
        {"destination": "pacs", "kind": "sr", "count": 1},
    ]
    assert heard(desk.settings.folder, UID, *(one.sop_instance_uid for one in left)) == []


def test_the_leaf_says_when_copies_of_the_vault_are_gone(new_site: Callable[..., Bench]) -> None:
    desk = new_site(PACS + "[vault]\nbackup_days = 30\n")
    keep(desk, "permit")
    gone(desk)
    (leaf,) = [one for one in desk.leaves() if one["type"] == "subject.erased"]
    assert leaf["body"]["expiry"] > leaf["time"]


def test_every_table_is_erased_or_names_no_patient() -> None:
    """A new table fails here until somebody says which of the two it is."""
    source = Path(erasure.__file__).read_text(encoding="utf-8")
    imported = re.search(r"from bridge.store.tables import \(([^)]*)\)", source)
    known = {word.strip(" ,") for word in imported[1].split("\n")} - {"", "METADATA"}
    assert known.isdisjoint(erasure.IMPERSONAL)
    assert known | erasure.IMPERSONAL | {"erasures"} == set(tables.METADATA.tables)


@pytest.mark.peer
def test_the_only_patient_of_a_postgresql_site_leaves_empty_tables_and_no_sample(
    new_site: Callable[..., Bench], database_url: str
) -> None:
    desk = new_site(f'[database]\nurl = "{database_url}"\n')
    keep(desk, "permit")
    desk.receive(*images(3))
    engine = sqlalchemy.create_engine(database_url, isolation_level="AUTOCOMMIT")

    def samples() -> str:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("ANALYZE"))
            rows = connection.execute(sqlalchemy.text("SELECT t::text FROM pg_statistic AS t"))
            return "\n".join(row[0] for row in rows)

    assert sop_uids(*images(3))[0] in samples()
    gone(desk)
    for name in ("Alpha", "A-1", UID, *sop_uids(*images(3))):
        assert name not in samples()
    assert desk.rows("studies") == desk.rows("instances") == desk.rows("consents") == []
    assert heard(desk.settings.folder, "Alpha", UID) == []
    desk.verify()
    engine.dispose()


# --- a crash in every window -----------------------------------------------------------------


class Crash(BaseException):
    """The process ended here."""


def _crash(*_: Any, **__: Any) -> None:
    raise Crash


class Windows:
    """Counts effects, before and after each; raises Crash once, at number `at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.passed, self.armed = 0, 0, False
        around = [
            (Log, "append"), (Vault, "destroy"), (erasure, "scrub"), (erasing, "vacuum"),
            (Files, "erase_study"), (Files, "erase_arrival"), (Files, "erase_artifact"),
            (Files, "erase_run"), (EngineClient, "stop"), (EngineClient, "forget"),
        ]  # fmt: skip
        for owner, name in around:
            monkeypatch.setattr(owner, name, self.around(getattr(owner, name)))

    def window(self, *_: Any) -> None:
        if self.armed:
            self.passed += 1
            if self.passed == self.at:
                raise Crash

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.window()
            found = function(*args, **options)
            self.window()
            return found

        return call


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    return Windows(monkeypatch)


@pytest.fixture
def again(tmp_path: Path, windows: Windows) -> Iterator[Callable[[], Bench]]:
    """Give the same site again and again: a study read, one at work, one shared, an inbox."""
    first = Bench(tmp_path / "first", PACS)
    first.model(NO_PICTURE)
    keep(first, "permit")
    read(first)
    sent = images(4, study="shared", patient=BERT)
    first.receive(*sent[:3], changed(sent[3], PatientID="A-1", PatientName="Alpha^Anna"))
    first.receive(*images(3, study="at work"))
    uid = str(images(1, study="at work")[0].StudyInstanceUID)
    (route_id,) = first.seal(uid)
    first.run(route_id)
    first.lay(*images(1, study="in the inbox"))
    first.close()
    with copies(tmp_path / "first", tmp_path / "copy", windows.window, 50) as copy:
        yield copy


def _truth(desk: Bench) -> None:
    """At any moment: what the log says of the erasure is so."""
    said = desk.rooms.record.log.select(type="subject.erased")
    ref = desk.rows("erasures")[0].subject_ref
    erased = desk.rooms.vault.erased(ref)
    if said:
        assert erased
    if erased:
        # WAL and all: what the key's destruction finds is what an intruder finds.
        found = heard(desk.settings.folder, "Alpha", "Anna", UID)
        assert [one for one in found if not one[0].endswith("-wal")] == []


def test_a_crash_in_any_window_is_finished_by_the_same_words(
    again: Callable[[], Bench], windows: Windows
) -> None:
    at = 1
    while True:
        desk = again()
        row, _, _ = ask(desk)
        windows.at, windows.passed, windows.armed = at, 0, True
        with contextlib.suppress(Crash):
            erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")
        reached, windows.armed = windows.passed >= at, False
        _truth(desk)
        if at % 2:
            erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")
        else:
            erase.go_on(desk.rooms, 5)  # as the service does
        if (state := desk.rows("erasures")[0].state) == "requested":
            erase.confirm(desk.rooms, row.id, by="dr-b", account="pc2")  # the first was not heard
        else:
            assert state == "done"
        _judge(desk)
        if not reached:
            break
        at += 1
    assert at > 40


def _judge(desk: Bench) -> None:
    assert heard(desk.settings.folder, "Alpha", "Anna", UID, *sop_uids(*images(3))) == []
    assert [row.patient_id for row in desk.rows("studies")] == ["B-2"]
    (leaf,) = [one for one in desk.leaves() if one["type"] == "subject.erased"]
    assert leaf["body"]["by"] == ["dr-a", "dr-b"]
    (row,) = desk.rows("erasures")
    assert (row.state, bytes(row.sealed)) == ("done", b"")
    assert desk.rooms.vault.suppressed("GH", "A-1")
    desk.verify()


# --- what the permit asks --------------------------------------------------------------------


def test_a_question_on_the_way_is_denied_after_the_erasure(new_site: Callable[..., Bench]) -> None:
    """Rows of the study are gone: a step that comes late finds nothing, and says nothing."""
    desk = new_site(PACS)
    desk.model(NO_PICTURE)
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    desk.run(route_id)
    with reading(desk.rooms.database) as connection:
        route = work.route(connection, route_id)
        leaf = arrivals.leaf_of(connection, f"input/{route_id}")
    gone(desk)
    size = len(desk.leaves())
    with pytest.raises(sqlalchemy.exc.NoResultFound):
        permit.ask(desk.rooms, route, moment="inference", input_sealed=leaf)
    assert len(desk.leaves()) == size


def test_the_json_of_a_request_names_no_patient(read_desk: Bench) -> None:
    ask(read_desk)
    told = json.dumps([str(row) for row in erase.requests(read_desk.rooms)])
    for name in ("A-1", "Anna", UID):
        assert name not in told
