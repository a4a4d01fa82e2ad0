"""A log ends and another goes on: what is carried, what stays, and a crash at every write."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import bench
import pytest

from bridge import ambient, compose, deliver, grant, site
from bridge.audit import own_logs, words
from bridge.audit.file import verify_file
from bridge.consent.document import parse
from bridge.continuity import rotation, succession
from bridge.errors import SettingsError, WrongUse
from bridge.home import create, open_rooms, publish
from bridge.origins import ended
from ledger import leaf
from ledger.checkpoint import Checkpoint
from ledger.errors import SignatureInvalid, StorageFailed
from ledger.merkle import EMPTY, leaf_hash
from ledger.policy import of_keys
from ledger.store import Facts, Last, SqliteStore
from ledger.trace import Terms
from ledger.verify import open_checkpoint, read_vkeys, verify_log

NEW = "new.example.org/log"
THIRD = "third.example.org/log"
NO_PICTURE = {"deployment": {"results": {"secondary_capture": False}}}


def verify(folder):
    return verify_log(folder / "ledger", read_vkeys((folder / "ledger.vkey").read_text()))


def opened(folder):
    return open_rooms(site.read(folder), None)


def shut(rooms):
    for log in (rooms.record.log, *rooms.record.lineage.ended):
        log.store.close()
    rooms.vault.close()
    rooms.database.dispose()


def carry_on(folder, *, newer=None, reason="size"):
    """As `radseal ledger continue NEW`, typed once."""
    with succession.alone(folder):
        if ended.under_way(folder) is None and site.read(folder).origin != NEW:
            succession.begin(site.read(folder), NEW, newer, reason, "clerk")
        succession.finish(folder)


def seen_by_others(rooms):
    """A checkpoint of leaves that the site does not hold."""
    return Checkpoint(rooms.site.origin, rooms.record.log.size() + 50, b"\7" * 32)


@contextmanager
def publishing(rooms):
    """The service's publisher."""
    over = threading.Event()

    def work():
        while not over.wait(0.05):
            publish(rooms)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def moved(desk):
    """The bench on the new log, as after a restart."""
    desk.close()
    desk.reopen(desk.settings.folder)
    return desk


@pytest.fixture
def pacs(archive):
    return archive()


@pytest.fixture
def desk(new_site, pacs):
    made = new_site(pacs.toml())
    made.model(NO_PICTURE)
    text = bench.consent("permit")
    grant.keep(made.rooms, text, parse(text), None, by="clerk")
    return made


def composed(desk):
    """A study whose results are composed and not delivered; (its UID, its run)."""
    images = bench.images(3)
    desk.receive(*images)
    uid = str(images[0].StudyInstanceUID)
    (route,) = desk.seal(uid)
    run = desk.run(route)
    compose.compose(desk.rooms, run)
    return uid, run


@pytest.mark.parametrize("behind", [False, True])
def test_a_study_received_before_finishes_after(desk, pacs, behind):
    uid, run = composed(desk)
    folder = desk.settings.folder
    if not behind:
        publish(desk.rooms)
    newer = seen_by_others(desk.rooms) if behind else None
    desk.close()
    carry_on(folder, newer=newer)
    moved(desk)
    with publishing(desk.rooms):
        for destination in deliver.open_deliveries(desk.rooms, run):
            assert deliver.send(desk.rooms, run, destination, 0) == deliver.DONE
    desk.finish(uid)
    report = desk.verify()
    assert report.origin == NEW
    assert report.open_studies == ()
    assert report.counts["result.delivered"] == 2
    assert len(pacs.received) == 2
    trusted = of_keys(read_vkeys((folder / "ledger.vkey").read_text()))
    for file in (folder / "artifacts").rglob("*.sent.dcm"):
        said = words.as_json(verify_file(file, trusted), {})
        assert said["carried_from"] == [bench.ORIGIN]
        assert f"that {bench.ORIGIN} holds" in " ".join(said["not_proven"])
    first, *rest = desk.leaves()
    assert first["type"] == "log.continued"
    assert first["body"]["previous"] == bench.ORIGIN
    new = {"delivery.started", "result.delivered", "study.closed"}
    assert {one["type"] for one in rest if "carried" not in one} == new
    assert {one["carried"]["origin"] for one in rest if "carried" in one} == {bench.ORIGIN}
    old = folder / "ledger-closed/1"
    if behind:
        assert not (old / "ledger/checkpoint").exists()  # it never was published, nor is it now
        assert first["body"]["size"] > 0
    else:
        closed = verify(old)
        assert closed.counts["log.closed"] == 1
        assert (first["body"]["size"], first["body"]["root"]) == (
            closed.size, leaf.ref(closed.root)
        )  # fmt: skip


def test_a_delivery_is_tried_again_after(desk, pacs):
    uid, run = composed(desk)
    pacs.status["*"] = 0xC000
    with publishing(desk.rooms):
        for destination in deliver.open_deliveries(desk.rooms, run):
            deliver.send(desk.rooms, run, destination, 0)
    assert pacs.received == []
    desk.close()
    carry_on(desk.settings.folder)
    moved(desk)
    from bridge import acts

    acts.retry(desk.rooms, uid)
    pacs.status.clear()
    with publishing(desk.rooms):
        assert deliver.send(desk.rooms, run, "pacs", 1) == deliver.DONE
    assert len(pacs.received) == 2
    report = desk.verify()
    # The facts of the first try are the same facts: carried, not said anew.
    assert report.counts["delivery.started"] == report.counts["result.delivered"] == 2
    started = [one for one in desk.leaves() if one["type"] == "delivery.started"]
    assert all(one["carried"]["origin"] == bench.ORIGIN for one in started)


def test_a_model_retired_after_and_a_consent_withdrawn_after(desk):
    publish(desk.rooms)
    desk.close()
    carry_on(desk.settings.folder)
    moved(desk)
    (document,) = desk.rows("consents")
    grant.withdraw(desk.rooms, document.id)
    desk.rooms.lifecycle.act("test.threshold", "retire", ambient.now(), by="head")
    counts = desk.verify().counts
    assert counts["consent.withdrawn"] == counts["consent.granted"] == 1
    assert counts["model.retired"] == counts["model.registered"] == 1


def test_what_was_taken_and_not_published_is_said_again(desk):
    publish(desk.rooms)
    taken = [
        desk.rooms.record.say("config.changed", f"config/{n}", {"digest": f"{n:064x}"})
        for n in range(3)
    ]
    text = bench.consent("deny", bench.BERT)
    identity = grant.keep(desk.rooms, text, parse(text), None, by="clerk")
    newer = seen_by_others(desk.rooms)
    desk.close()
    carry_on(desk.settings.folder, newer=newer)
    moved(desk)
    leaves = desk.leaves()
    # A log's own affairs are not carried; the patient's word is.
    assert [one["idem"] for one in leaves] == ["log/continued/1", f"consent/{identity}/granted"]
    assert desk.rooms.record.body(taken[0]) == {"digest": f"{0:064x}"}
    moved(desk)
    assert len(desk.leaves()) == len(leaves)


def test_a_second_continuation_carries_through_both(desk, pacs):
    _, run = composed(desk)
    publish(desk.rooms)
    folder = desk.settings.folder
    desk.close()
    carry_on(folder)
    moved(desk)
    with publishing(desk.rooms):
        (destination,) = deliver.open_deliveries(desk.rooms, run)  # carries what was composed
    desk.close()
    with succession.alone(folder):
        succession.begin(site.read(folder), "third.example.org/log", None, "size", "clerk")
        succession.finish(folder)
    moved(desk)
    with publishing(desk.rooms):
        assert deliver.send(desk.rooms, run, destination, 0) == deliver.DONE
    assert len(pacs.received) == 2
    report = desk.verify()
    assert report.origin == "third.example.org/log"
    chained = [one["carried"] for one in desk.leaves() if "carried" in one]
    assert {one["origin"] for one in chained} == {NEW}
    assert any(one["before"]["origin"] == bench.ORIGIN for one in chained if "before" in one)
    for number in (1, 2):
        assert verify(folder / f"ledger-closed/{number}").counts["log.closed"] == 1


def test_old_facts_are_still_found_and_proven(desk):
    _, run = composed(desk)
    publish(desk.rooms)
    folder = desk.settings.folder
    ref = leaf.ref(desk.rooms.record.log.select(type="result.composed")[0][0])
    old_keys = read_vkeys((folder / "ledger.vkey").read_text())
    place = desk.rooms.record.covered(ref)
    desk.close()
    carry_on(folder)
    moved(desk)
    record = desk.rooms.record
    assert record.covered(ref) == place
    assert open_checkpoint(record.proof(ref).split("\n\n", 1)[1], old_keys)
    record.here(ref)
    publish(desk.rooms)
    assert record.lineage.standing(leaf.unref(ref))[0].origin == NEW
    assert record.covered(ref) is not None
    assert run


def test_the_old_log_takes_nothing_more_even_from_who_had_it_open(tmp_path):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    rooms = opened(folder)
    publish(rooms)
    other = SqliteStore(folder / "ledger.db")
    shut(rooms)
    with pytest.raises(StorageFailed, match="open in another process"):
        carry_on(folder)  # moved under its hands, the new log would be written by it
    assert (folder / "ledger.db").exists()
    with pytest.raises(StorageFailed, match="the log is closed"):
        other.append("k", b"x", b"\1" * 32, Facts("config.changed", "now"))
    other.close()
    carry_on(folder)
    assert sorted(path.name for path in (folder / "ledger-closed/1").iterdir()) == [
        "continued.json", "ledger", "ledger.db", "ledger.policy", "ledger.vkey"
    ]  # fmt: skip
    assert not [path.name for path in folder.glob("ledger.db-*")]
    publish(opened(folder))
    assert verify(folder).counts == {"log.continued": 1}


def test_the_new_origin_is_checked_before_anything_is_done(tmp_path):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    publish(opened(folder))
    before = sorted(path.name for path in folder.iterdir())
    wrong = {bench.ORIGIN: WrongUse, "https://x": SettingsError, "a b": SettingsError}
    for origin, error in wrong.items():
        with pytest.raises(error):
            succession.begin(site.read(folder), origin, None, "size", "clerk")
    (folder / "site.toml").write_text(
        "name = 'n'\norigin = '''test.example.org/log'''\n", encoding="utf-8"
    )
    with pytest.raises(SettingsError, match="line of its own"):
        succession.begin(site.read(folder), NEW, None, "size", "clerk")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_while_it_is_not_finished_nobody_else_opens_the_site(tmp_path):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    publish(opened(folder))
    succession.begin(site.read(folder), NEW, None, "size", "clerk")
    with pytest.raises(SettingsError, match=f"radseal ledger continue {NEW}"):
        opened(folder)


def test_a_site_that_is_served_is_left_alone(tmp_path):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    with (
        succession.alone(folder),
        pytest.raises(WrongUse, match="stop it first"),
        succession.alone(folder),
    ):
        pass


# --- a log that never had a leaf -----------------------------------------------------------------


def third(folder, newer=None):
    with succession.alone(folder):
        succession.begin(site.read(folder), THIRD, newer, "size", "clerk")
        succession.finish(folder)


def test_an_empty_log_ends_without_a_last_leaf(tmp_path):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    carry_on(folder)
    rooms = opened(folder)
    publish(rooms)
    (said,) = [leaf.parse(rooms.record.log.leaf(one)) for one, _ in rooms.record.log.select()]
    assert (said["type"], said["body"]["size"]) == ("log.continued", 0)
    assert said["body"]["root"] == leaf.ref(EMPTY)
    assert verify(folder).origin == NEW
    assert not list((folder / "ledger-closed/1/ledger").rglob("checkpoint"))
    assert SqliteStore(folder / "ledger-closed/1/ledger.db").select() == []
    judged = own_logs.judge(folder, Terms())
    assert [(one.good, one.report.origin) for one in judged] == [(True, NEW)]


def test_continued_again_before_anybody_opened_the_site(tmp_path):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    publish(opened(folder))
    gc.collect()
    carry_on(folder)
    third(folder)  # a crash between finish() and the first opening
    publish(opened(folder))
    report = verify(folder)
    assert (report.origin, report.counts) == (THIRD, {"log.continued": 1})
    assert opened(folder).record.body(first_leaf(folder))["previous"] == NEW
    assert verify(folder / "ledger-closed/1").counts["log.closed"] == 1
    judged = own_logs.judge(folder, Terms())
    assert [(one.good, one.report.origin) for one in judged] == [
        (True, bench.ORIGIN), (True, THIRD)
    ]  # fmt: skip


def test_a_log_that_was_shut_with_log_closed_alone_is_ended_by_typing_it_again(tmp_path):
    """As an earlier build of this release left it: it could be neither published nor opened."""
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    succession.begin(site.read(folder), NEW, None, "size", "clerk")
    store = SqliteStore(folder / "ledger.db")
    store.pin(bench.ORIGIN)
    now = ambient.now()
    made = leaf.render(leaf.record(
        id=ambient.new_leaf_id(now), type="log.closed", time=now, node="n",
        actor={"kind": "system", "id": "r"}, idem="log/closed",
        body={"reason": "size", "next": NEW, "by": "clerk"},
    ))  # fmt: skip
    store.shut(Last("log/closed", made, leaf_hash(made), Facts("log.closed", "now")))
    store.close()
    carry_on(folder)
    publish(opened(folder))
    assert verify(folder).counts == {"log.continued": 1}


def denied(rooms, number=1):
    """An acknowledged leaf of a patient's; not published."""
    subject = rooms.vault.subject("GH", "1").alias
    body = {"document": leaf.ref(bytes(32)), "status": "active", "source": "fhir"}
    idem = f"consent/{number}/granted"
    rooms.record.say("consent.granted", idem, body, subject=subject)
    return idem


@pytest.mark.parametrize("closed", [True, False])
def test_what_the_first_of_three_logs_took_and_nobody_published_is_in_the_third(tmp_path, closed):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    rooms = opened(folder)
    publish(rooms)
    idem, newer = denied(rooms), seen_by_others(rooms)
    shut(rooms)
    carry_on(folder, newer=newer)
    third(folder, None if closed else Checkpoint(NEW, 0, EMPTY))  # nobody had opened the second
    rooms = opened(folder)
    publish(rooms)
    record = leaf.parse(rooms.record.log.leaf(rooms.record.log.find(idem)))
    assert record["carried"]["origin"] == bench.ORIGIN
    count = len(rooms.record.log.select())
    shut(rooms)
    assert verify(folder).counts == {"log.continued": 1, "consent.granted": 1}
    rooms = opened(folder)
    assert len(rooms.record.log.select()) == count == 2
    shut(rooms)


@pytest.mark.parametrize("published", [True, False])
def test_what_the_second_log_has_taken_over_is_not_lost_and_not_doubled(tmp_path, published):
    folder = create(tmp_path / "s", "n", bench.ORIGIN).folder
    rooms = opened(folder)
    publish(rooms)
    one, newer = denied(rooms), seen_by_others(rooms)
    shut(rooms)
    carry_on(folder, newer=newer)
    rooms = opened(folder)
    if published:
        publish(rooms)
    two, newer = denied(rooms, 2), Checkpoint(NEW, 70, b"\7" * 32)
    shut(rooms)
    third(folder, newer)
    rooms = opened(folder)
    publish(rooms)
    assert rooms.record.log.find(two) is not None
    # Published in the second log it is a fact there; nobody needs it here.
    assert (rooms.record.log.find(one) is None) == published
    shut(rooms)
    assert verify(folder).counts["consent.granted"] == (1 if published else 2)


# --- a crash at every write, before it and after it ---------------------------------------------


class Crash(BaseException):
    """The process is gone."""


class Clock:
    """Counts writes; crashes at the n-th, before it happened or after it did."""

    def __init__(self, at, *, after):
        self.count, self.at, self.after = 0, at, after

    def wrap(self, act):
        def acted(*given, **named):
            self.count += 1
            mine = self.count
            if mine == self.at and not self.after:
                raise Crash
            result = act(*given, **named)  # a write may be made of others
            if mine == self.at:
                self.at = -1
                raise Crash
            return result

        return acted


def writes(monkeypatch, clock):
    for owner, name in (
        (os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "unlink"), (Path, "rmdir"),
        (SqliteStore, "append"), (SqliteStore, "advance"), (SqliteStore, "shut"),
        (SqliteStore, "settle"), (SqliteStore, "assign"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, clock.wrap(getattr(owner, name)))


def continued_when_closed(folder):
    carry_on(folder)
    rooms = opened(folder)
    publish(rooms)
    shut(rooms)


def continued_when_behind(folder):
    carry_on(folder, newer=Checkpoint(bench.ORIGIN, 99, b"\7" * 32))
    rooms = opened(folder)
    publish(rooms)
    shut(rooms)


def rotated(folder):
    with succession.alone(folder):
        rotation.add_pair(site.read(folder), "clerk", "rotation")
        rooms = opened(folder)
        publish(rooms)
        shut(rooms)


def retired(folder):
    with succession.alone(folder):
        rooms = opened(folder)
        publish(rooms)
        rotation.drop_old_pairs(rooms, "clerk")
        shut(rooms)
        rooms = opened(folder)
        publish(rooms)
        shut(rooms)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "s"
    create(folder, "n", bench.ORIGIN)
    rooms = opened(folder)
    rooms.record.say("config.changed", "config/1", {"digest": "1" * 64})
    publish(rooms)
    subject = rooms.vault.subject("GH", "1").alias
    body = {"document": leaf.ref(bytes(32)), "status": "active", "source": "fhir"}
    rooms.record.say("consent.granted", "consent/1/granted", body, subject=subject)  # not published
    shut(rooms)
    return folder


def points(act, folder):
    """How many writes an act makes."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(0, after=False)
        writes(patch, clock)
        act(folder)
    return clock.count


def crash_everywhere(template, tmp_path, act, check):
    """Crash an act at each write both ways, type it again, and check; how many crashes."""
    count = points(act, Path(shutil.copytree(template, tmp_path / "count")))
    for at in range(1, count + 1):
        for after in (False, True):
            folder = Path(shutil.copytree(template, tmp_path / f"{at}-{after}"))
            with pytest.MonkeyPatch.context() as patch:
                writes(patch, Clock(at, after=after))
                with pytest.raises(Crash):
                    act(folder)
            act(folder)
            check(folder)
            shutil.rmtree(folder)
    return 2 * count


def test_a_crash_anywhere_in_a_continuation_is_repaired_by_typing_it_again(template, tmp_path):
    def check(folder):
        new, old = verify(folder), verify(folder / "ledger-closed/1")
        assert (new.origin, old.origin) == (NEW, bench.ORIGIN)
        assert new.counts == {"log.continued": 1}
        assert old.counts == {
            "log.opened": 1, "config.changed": 1, "consent.granted": 1, "log.closed": 1
        }  # fmt: skip
        told = opened(folder).record.body(first_leaf(folder))
        assert (told["size"], told["root"]) == (old.size, leaf.ref(old.root))
        assert not list((folder / "keys").glob("*.pem"))
        assert not (folder / "continuing.json").exists()

    assert crash_everywhere(template, tmp_path, continued_when_closed, check) > 60


def first_leaf(folder):
    rooms = opened(folder)
    found = leaf.ref(rooms.record.log.select(type="log.continued")[0][0])
    shut(rooms)
    return found


def test_the_same_for_a_log_that_is_left_as_it_is(template, tmp_path):
    before = verify(template)

    def check(folder):
        new, old = verify(folder), verify(folder / "ledger-closed/1")
        assert new.counts == {"log.continued": 1, "consent.granted": 1}
        assert (old.size, old.root) == (before.size, before.root)  # nothing was signed
        assert len(list((folder / "keys").glob("*.pem"))) == 2

    assert crash_everywhere(template, tmp_path, continued_when_behind, check) > 40


def test_a_crash_anywhere_in_a_rotation_is_repaired_by_typing_it_again(template, tmp_path):
    def check(folder):
        report = verify(folder)
        assert report.counts["key.rotated"] == 1
        assert len(report.signed_by) == len((folder / "ledger.vkey").read_text().split()) == 4

    assert crash_everywhere(template, tmp_path, rotated, check) > 30


def test_the_same_for_the_end_of_the_overlap(template, tmp_path):
    folder = Path(shutil.copytree(template, tmp_path / "rotated"))
    rotated(folder)

    def check(folder):
        report = verify(folder)
        assert report.counts["key.rotated"] == 2
        assert len(report.signed_by) == len((folder / "ledger.vkey").read_text().split()) == 2
        assert not list((folder / "keys").glob("*.pem"))

    assert crash_everywhere(folder, tmp_path, retired, check) > 20


# --- rotation -------------------------------------------------------------------------------------


def test_old_keys_new_keys_and_both_verify_during_the_overlap_and_the_new_ones_after(
    template, tmp_path
):
    folder = Path(shutil.copytree(template, tmp_path / "s"))
    old = read_vkeys((folder / "ledger.vkey").read_text())
    rooms = opened(folder)
    rooms.record.say("config.changed", "config/2", {"digest": "2" * 64})  # waits
    shut(rooms)
    rotated(folder)
    both = read_vkeys((folder / "ledger.vkey").read_text())
    new = [key for key in both if key not in old]
    assert both == [*new, *old]
    for keys in (old, new, both):
        assert set(verify_log(folder / "ledger", keys).signed_by) == set(keys)
    (said,) = [one for one in _leaves(folder) if one["type"] == "key.rotated"]
    assert len(said["body"]["keys"]) == 4
    retired(folder)
    assert read_vkeys((folder / "ledger.vkey").read_text()) == new
    assert verify_log(folder / "ledger", new).counts["key.rotated"] == 2
    text = (folder / "ledger/checkpoint").read_text()
    with pytest.raises(SignatureInvalid, match=r"fetch its ledger\.vkey again"):
        open_checkpoint(text, old)


def _leaves(folder):
    rooms = opened(folder)
    publish(rooms)
    hashes = rooms.record.log.select()
    found = [leaf.parse(rooms.record.log.leaf(one)) for one, _ in hashes]
    shut(rooms)
    return found


def test_the_new_key_signs_the_statement_of_its_leaf(template, tmp_path):
    import base64

    from ledger import note

    folder = Path(shutil.copytree(template, tmp_path / "s"))
    rotated(folder)
    (said,) = [one["body"] for one in _leaves(folder) if one["type"] == "key.rotated"]
    (proof,) = said["proof"]
    statement = "\n".join(["radseal/key.rotated/v1", bench.ORIGIN, *said["keys"], ""])
    key = note.Verifier.from_vkey(proof["key"])
    key.verify(statement, base64.b64decode(proof["signature"]))
    with pytest.raises(SignatureInvalid):
        key.verify(statement.replace("v1", "v2"), base64.b64decode(proof["signature"]))


def test_a_third_pair_follows_the_second(template, tmp_path):
    folder = Path(shutil.copytree(template, tmp_path / "s"))
    rotated(folder)
    assert rotation.add_pair(site.read(folder), "clerk", "again") is False
    retired(folder)
    rotated(folder)
    assert [pair.number for pair in rotation.signing(site.read(folder))] == [3, 2]
    retired(folder)
    assert [pair.number for pair in rotation.signing(site.read(folder))] == [3]
    assert verify(folder).counts["key.rotated"] == 4
    assert sorted(path.name for path in (folder / "keys").iterdir()) == ["ledger-3", "site.key"]
