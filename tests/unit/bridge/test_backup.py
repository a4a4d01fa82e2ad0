"""A site is copied while it works and comes back whole; what is behind starts a new log."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
import threading
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import bench
import pytest

from bridge import compose, deliver, site
from bridge.continuity import restore
from bridge.continuity.backup import back_up
from bridge.continuity.restore import Plan
from bridge.errors import NotFound, Refused, StorageFull, WrongUse
from bridge.home import open_rooms, publish
from bridge.origins.published import Standing
from bridge.store import story
from bridge.store.database import open_engine, reading
from ledger.tiles import WIDTH
from ledger.verify import read_vkeys, verify_log

SITES = Path(__file__).resolve().parents[2] / "sites"
NEW = "new.example.org/log"
NO_PICTURE = {"deployment": {"results": {"secondary_capture": False}}}


def silent(_count):
    pass


def backed_up(folder, path, **options):
    given = {"vault": None, "keys": None, "days": 30, "now": bench.NOW, "progress": silent}
    return back_up(site.read(folder), path, **{**given, **options})


def restored(made, target, now=bench.NOW, **options):
    return restore.restore(Plan(made.site, **options), target, now, silent)


def verify(folder):
    return verify_log(folder / "ledger", read_vkeys((folder / "ledger.vkey").read_text()))


def members(path):
    with tarfile.open(path) as file:
        return file.getnames()


def fill(rooms, count, start=0):
    for number in range(start, start + count):
        rooms.record.say("config.changed", f"fill/{number}", {"digest": f"{number:064x}"})


@pytest.fixture
def pacs(archive):
    return archive()


@pytest.fixture
def desk(new_site, pacs):
    made = new_site(pacs.toml())
    made.model(NO_PICTURE)
    return made


def moved(desk, folder):
    """The bench at the restored site."""
    desk.close()
    desk.reopen(folder)
    return desk


def ran(desk):
    images = bench.images(3)
    desk.receive(*images)
    uid = str(images[0].StudyInstanceUID)
    (route,) = desk.seal(uid)
    run = desk.run(route)
    return uid, run


def test_a_whole_site_goes_and_comes_back(desk, pacs, tmp_path):
    uid = str(bench.images(1)[0].StudyInstanceUID)
    desk.receive(*bench.images(3), b"no DICOM")
    desk.walk(uid)
    report = desk.verify()
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    assert {made.site.name, made.vault.name, made.keys.name} == {
        "b.tar", "b.tar.keys", "b.tar.vault-until-20261224"
    }  # fmt: skip
    for path in (made.site, made.vault, made.keys):
        assert path.stat().st_mode & 0o777 == 0o600
    back = restored(made, tmp_path / "back", published=str(desk.settings.folder / "ledger"))
    assert (back.standing, back.size, back.vault, back.keys) == (
        Standing.EQUAL, report.size, True, True
    )  # fmt: skip
    for name in ("instances", "artifacts", "models", "keys"):
        for file in (desk.settings.folder / name).rglob("*"):
            if file.is_file() and file.suffix in {".dcm", ".onnx", ".json", ".pem", ".key"}:
                twin = back.folder / file.relative_to(desk.settings.folder)
                assert twin.read_bytes() == file.read_bytes(), file
    moved(desk, back.folder)
    assert desk.study(uid).state == "delivered"
    desk.walk(uid)
    assert len(pacs.received) == 2  # nothing is sent again
    assert desk.verify().size == report.size


def test_no_key_is_in_the_sites_file_and_no_patients_key_in_the_others(desk, tmp_path):
    desk.receive(*bench.images(2))
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    secrets = [path.read_bytes() for path in (desk.settings.folder / "keys").iterdir()]
    data = made.site.read_bytes()
    for secret in secrets:
        assert secret not in data
    assert not [name for name in members(made.site) if "vault" in name or name.startswith("keys")]
    with closing(sqlite3.connect(desk.settings.folder / "vault.db")) as database:
        wrapped = [row[0] for row in database.execute("SELECT wrapped FROM vault_subject")]
    assert wrapped
    for path, there in ((made.site, False), (made.keys, False), (made.vault, True)):
        assert all((one in path.read_bytes()) is there for one in wrapped), path


def test_an_image_that_nobody_indexed_is_in_the_copys_inbox(desk, tmp_path):
    desk.receive(*bench.images(2))
    waiting = desk.lay(*bench.images(4)[2:])
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    # One that came and was indexed after the rows were copied has no row in the copy, either.
    back = restored(made, tmp_path / "back")
    assert sorted(p.name for p in (back.folder / "instances/inbox").iterdir()) == sorted(
        path.name for path in waiting
    )
    moved(desk, back.folder)
    desk.indexer = desk._indexer()
    while desk.indexer.index(desk.clock.steady()):
        pass
    assert desk.states() == {"held": 4}


def test_rows_of_later_images_are_not_in_the_copy_but_the_images_are(desk, tmp_path, monkeypatch):
    from bridge.store import copies

    copy, late = copies.copy_sqlite, bench.images(4)[2:]

    def then_more_come(source, target):
        copy(source, target)
        if source.name == "state.db":
            desk.receive(*late)

    desk.receive(*bench.images(2))
    monkeypatch.setattr(copies, "copy_sqlite", then_more_come)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    inbox = [name for name in members(made.site) if name.startswith("instances/inbox/")]
    assert len(inbox) == 2
    assert len([n for n in members(made.site) if n.startswith("instances/")]) == 4
    back = restored(made, tmp_path / "back")
    moved(desk, back.folder)
    desk.indexer = desk._indexer()
    while desk.indexer.index(desk.clock.steady()):
        pass
    assert desk.states() == {"held": 4}


@pytest.mark.parametrize("size", [2, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 7])
def test_the_copied_log_is_exactly_as_long_as_its_rows(new_site, tmp_path, size):
    desk = new_site()
    fill(desk.rooms, size - 1)
    publish(desk.rooms)
    fill(desk.rooms, 5, start=size)  # taken, not published: they go along as rows
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    assert made.size == size
    back = restored(made, tmp_path / "back")
    assert verify(back.folder).size == size
    moved(desk, back.folder)
    publish(desk.rooms)
    assert verify(back.folder).size == size + 5


def test_a_copy_taken_while_leaves_are_published_is_never_ahead(new_site, tmp_path):
    desk = new_site()
    publish(desk.rooms)
    over = threading.Event()

    def work():
        number = 0
        while not over.is_set():
            fill(desk.rooms, 20, start=number)
            number += 20
            publish(desk.rooms)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        made = [backed_up(desk.settings.folder, tmp_path / f"{n}.tar") for n in range(6)]
    finally:
        over.set()
        thread.join()
    assert made[-1].size > made[0].size
    for number, one in enumerate(made):
        published = str(desk.settings.folder / "ledger")
        back = restored(
            one, tmp_path / f"back-{number}", published=published, next=f"n{number}.example/log"
        )
        assert back.standing is Standing.BEHIND
        settings = site.read(back.folder)
        rooms = open_rooms(settings, None)
        publish(rooms)
        assert verify(back.folder).counts["log.continued"] == 1
        assert verify(back.folder / "ledger-closed/1").size == one.size


def test_a_run_whose_outcome_waits_is_reported_after(desk, pacs, tmp_path):
    uid, run = ran(desk)
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    assert [name for name in members(made.site) if name.startswith("work/")]
    back = restored(made, tmp_path / "back", published=str(desk.settings.folder / "ledger"))
    moved(desk, back.folder)
    compose.compose(desk.rooms, run)
    publish(desk.rooms)
    for destination in deliver.open_deliveries(desk.rooms, run):
        publisher = threading.Timer(0.5, publish, [desk.rooms])
        publisher.start()
        assert deliver.send(desk.rooms, run, destination, 0) == deliver.DONE
        publisher.join()
    desk.finish(uid)
    assert len(pacs.received) == 2
    assert desk.verify().open_studies == ()


def test_behind_the_published_checkpoint_it_goes_on_only_under_a_new_name(desk, tmp_path):
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    fill(desk.rooms, 3)
    publish(desk.rooms)
    published = str(desk.settings.folder / "ledger/checkpoint")
    newest = verify(desk.settings.folder)
    with pytest.raises(Refused, match="--continue-as NEW_ORIGIN"):
        restored(made, tmp_path / "back", published=published)
    assert not (tmp_path / "back").exists()
    back = restored(made, tmp_path / "back", published=published, next=NEW)
    assert back.standing is Standing.BEHIND
    old = (back.folder / "ledger-closed/1/ledger/checkpoint").read_bytes()
    moved(desk, back.folder)
    (first,) = desk.leaves()
    assert first["body"]["size"] == newest.size
    assert first["body"]["previous"] == bench.ORIGIN
    assert first["body"]["reason"] == "restored"
    assert (back.folder / "ledger-closed/1/ledger/checkpoint").read_bytes() == old
    assert verify(back.folder).origin == NEW


def test_a_persons_word_that_it_is_behind(desk, tmp_path):
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    with pytest.raises(Refused, match="--continue-as"):
        restored(made, tmp_path / "back", behind=True)
    back = restored(made, tmp_path / "back", behind=True, next=NEW)
    assert site.read(back.folder).origin == NEW


def test_another_history_is_seen(desk, tmp_path):
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    twin = Path(shutil.copytree(desk.settings.folder, tmp_path / "twin"))
    fill(desk.rooms, 2)
    publish(desk.rooms)
    later = backed_up(desk.settings.folder, tmp_path / "c.tar")
    rooms = open_rooms(site.read(twin), None)
    fill(rooms, 2, start=100)
    publish(rooms)
    with pytest.raises(Refused, match="--continue-as"):
        restored(later, tmp_path / "back", published=str(twin / "ledger"))
    back = restored(later, tmp_path / "back", published=str(twin / "ledger"), next=NEW)
    assert back.standing is Standing.OTHER
    assert restored(made, tmp_path / "b2", published=str(desk.settings.folder / "ledger"), next=NEW)


def test_ahead_of_what_was_published_it_goes_on(desk, tmp_path):
    publish(desk.rooms)
    saved = tmp_path / "saved"
    saved.write_bytes((desk.settings.folder / "ledger/checkpoint").read_bytes())
    fill(desk.rooms, 3)
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    back = restored(made, tmp_path / "back", published=str(saved))
    assert back.standing is Standing.AHEAD
    assert site.read(back.folder).origin == bench.ORIGIN


@pytest.mark.parametrize("what", ["rubbish", "nothing", "strange"])
def test_a_checkpoint_that_says_nothing_is_refused(desk, tmp_path, what, paper_checkpoint):
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    path = tmp_path / "point"
    if what != "nothing":
        path.write_text("rubbish" if what == "rubbish" else paper_checkpoint)
    with pytest.raises((Refused, NotFound)):
        restored(made, tmp_path / "back", published=str(path))
    assert not (tmp_path / "back").exists()


@pytest.fixture
def paper_checkpoint():
    from ledger import note
    from ledger.checkpoint import Checkpoint

    signer = note.Ed25519Signer.generate(bench.ORIGIN, lambda count: bytes(count))
    return note.sign_note(str(Checkpoint(bench.ORIGIN, 5, bytes(32))), [signer], 0)


def test_a_damaged_byte_is_refused_and_its_file_named(desk, tmp_path):
    desk.receive(*bench.images(2))
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    data = bytearray(made.site.read_bytes())
    with tarfile.open(made.site) as file:
        found = {m.name: m for m in file.getmembers()}
    image = next(name for name in found if name.endswith(".dcm"))
    for name in ("db/state.db", "db/ledger.db", "ledger/checkpoint", image, "site.toml"):
        place = found[name].offset_data + found[name].size // 2
        data[place] ^= 1
        bad = tmp_path / "bad.tar"
        bad.write_bytes(bytes(data))
        data[place] ^= 1
        with pytest.raises(Refused, match=name.replace(".", r"\.")):
            restored(replace(made, site=bad), tmp_path / "back")
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("back")) == []


def test_a_folder_with_content_is_refused(desk, tmp_path):
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/x").write_text("")
    with pytest.raises(WrongUse, match="not empty"):
        restored(made, tmp_path / "back")


def test_an_expired_vault_is_not_used_unless_a_person_says_so(desk, tmp_path):
    desk.receive(*bench.images(1))
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar", days=3)
    later = bench.NOW + timedelta(days=4)
    with pytest.raises(Refused, match="expired on 2026-11-27"):
        restored(made, tmp_path / "back", now=later)
    assert restored(made, tmp_path / "back", now=later, expired=True).vault


def test_the_files_of_another_site_are_not_mixed_in(desk, tmp_path):
    publish(desk.rooms)
    made = backed_up(desk.settings.folder, tmp_path / "b.tar")
    with pytest.raises(Refused, match="is not the vault of this site"):
        restored(made, tmp_path / "back", vault=made.keys)
    with pytest.raises(Refused, match="no backup of a site"):
        restored(replace(made, site=made.keys), tmp_path / "back")
    with pytest.raises(NotFound):
        restored(made, tmp_path / "back", keys=tmp_path / "no")


def test_a_disk_that_fills_up_leaves_no_backup(desk, tmp_path, monkeypatch):
    from bridge.continuity import tar

    publish(desk.rooms)
    put, left = tar.Writer._put, [3]

    def full(self, data):
        left[0] -= 1
        if left[0] < 0:
            raise StorageFull("full")
        put(self, data)

    monkeypatch.setattr(tar.Writer, "_put", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageFull):
        backed_up(desk.settings.folder, tmp_path / "out/b.tar")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (desk.settings.folder / ".backup").exists()


def test_a_site_of_rows_elsewhere_is_refused(desk, tmp_path):
    text = (desk.settings.folder / "site.toml").read_text()
    (desk.settings.folder / "site.toml").write_text(
        f'{text}\n[database]\nurl = "sqlite:///{tmp_path}/elsewhere.db"\n'
    )
    with pytest.raises(Refused, match=r"\[database\] url lies outside"):
        backed_up(desk.settings.folder, tmp_path / "b.tar")


def test_ended_logs_go_along(desk, tmp_path):
    from bridge.continuity import succession

    uid, run = ran(desk)
    compose.compose(desk.rooms, run)
    publish(desk.rooms)
    folder = desk.settings.folder
    desk.close()
    with succession.alone(folder):
        succession.begin(site.read(folder), NEW, None, "size", "clerk")
        succession.finish(folder)
    moved(desk, folder)
    publish(desk.rooms)
    made = backed_up(folder, tmp_path / "b.tar")
    back = restored(made, tmp_path / "back", published=str(folder / "ledger"))
    assert back.standing is Standing.EQUAL
    assert verify(back.folder / "ledger-closed/1").counts["log.closed"] == 1
    moved(desk, back.folder)
    publisher = threading.Timer(0.5, publish, [desk.rooms])
    publisher.start()
    assert deliver.open_deliveries(desk.rooms, run) == ["pacs"]
    publisher.join()
    assert uid


# --- a backup of an earlier release -------------------------------------------------------------


RELEASES = sorted(folder.name for folder in SITES.iterdir() if (folder / "expected.json").exists())


@pytest.mark.parametrize("release", RELEASES)
def test_a_backup_of_an_earlier_release_is_restored_behind_what_was_published(release, tmp_path):
    folder = Path(shutil.copytree(SITES / release, tmp_path / "s"))
    expected = json.loads((folder / "expected.json").read_text())
    made = backed_up(folder, tmp_path / "b.tar")  # no keys are committed
    assert made.keys is None
    back = restored(made, tmp_path / "back", published=str(folder / "ledger"))
    assert back.standing is Standing.EQUAL
    assert (back.size, back.keys, back.vault) == (expected["size"], False, True)
    report = verify(back.folder)
    assert dict(sorted(report.counts.items())) == expected["leaves"]
    behind = restored(made, tmp_path / "behind", behind=True, next=NEW)
    (behind.folder / "keys/site.key").write_bytes(bytes(32))
    (behind.folder / "vault.db").unlink()  # sealed by a key that is not committed
    rooms = open_rooms(site.read(behind.folder), None)
    publish(rooms)
    new = verify(behind.folder)
    assert (new.origin, new.counts) == (NEW, {"log.continued": 1})
    assert verify(behind.folder / "ledger-closed/1").size == expected["size"]
    engine = open_engine(site.read(behind.folder).database_url)
    with reading(engine) as connection:
        lines, _ = story.list_studies(connection)
    engine.dispose()
    assert {line.study_instance_uid: str(line.state) for line in lines} == expected["studies"]
