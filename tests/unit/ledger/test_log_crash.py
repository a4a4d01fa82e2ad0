"""A crash at every single write, before it or just after it: nothing acknowledged is lost.

Writes are the acts on files and each statement of the database. A crash is the end of the
process, a power cut that takes what was not synced along, or an error of the disk after
which nothing may be signed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3

import crashes
import pytest
from crashes import Clock, Crash, Disk, Watched

from ledger import leaf, store, verify
from ledger.errors import StorageFailed

PUBLISHED = [7, 250]  # within a bundle; over the edge of one
WAITING = 20


@pytest.fixture(autouse=True)
def _nothing_is_really_synced(monkeypatch):
    """What is durable is simulated here; waiting for the disk adds nothing."""
    connect = store._connect

    def connected(*given):
        made = connect(*given)
        made.execute("PRAGMA synchronous = OFF")
        return made

    monkeypatch.setattr(store, "_connect", connected)
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


@pytest.fixture
def template(tmp_path, paper, request):
    """A site with `published` leaves under a checkpoint and 20 more that wait."""
    published = getattr(request, "param", PUBLISHED[0])
    folder = tmp_path / "template"
    folder.mkdir()
    site = paper.Site(folder)
    site.fill(published - 1)
    site.publish()
    waiting = site.fill(WAITING)
    site.store.close()
    return folder, published, waiting


def opened(template, folder, paper):
    """A copy of the template, and the site in it."""
    shutil.copytree(template[0], folder)
    site = paper.Site(folder, opened=False)
    site.number = template[1] + WAITING
    return site


def install(clock, patch, site):
    crashes.watch_files(clock, patch)
    crashes.watch_sqlite(clock, patch, site.store)


def writes_of_publishing(template, folder, paper):
    site, clock = opened(template, folder, paper), Clock()
    with pytest.MonkeyPatch.context() as patch:
        install(clock, patch, site)
        site.publish()
    site.store.close()
    assert {"open", "write", "fsync", "rename", "execute", "executemany"} <= set(clock.names)
    return clock.count


def crashed(site, clock, disk=None):
    """Publish until the clock strikes."""
    with pytest.MonkeyPatch.context() as patch:
        if disk is not None:
            disk.install(patch)
        install(clock, patch, site)
        with pytest.raises(Crash):
            site.publish()


def recovered(site, paper, template):
    """The next start goes on: every leaf once, in the order that it had."""
    _, published, waiting = template
    assert verify.verify_log(site.folder, paper.VKEYS).size in (published, published + WAITING)
    later = site.fill(2)
    site.publish(9)
    report = verify.verify_log(site.folder, paper.VKEYS)
    assert (report.size, report.ahead) == (published + WAITING + 2, ())
    indexes = [site.log.covered(leaf.unref(one)) for one in waiting + later]
    assert indexes == list(range(published, published + WAITING + 2))


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done-untold"])
@pytest.mark.parametrize("template", PUBLISHED, indirect=True)
def test_every_crash_point(template, after, tmp_path, paper, capsys):
    writes = writes_of_publishing(template, tmp_path / "count", paper)
    assert writes > 40
    for at in range(1, writes + 1):
        site = opened(template, tmp_path / str(at), paper)
        crashed(site, Clock(at, after))
        again = site.reopen()
        recovered(again, paper, template)
        again.store.close()
        shutil.rmtree(tmp_path / str(at))
    with capsys.disabled():
        print(f"\ncrash matrix: SQLite, {template[1]} leaves, {writes} points, all recovered")


@pytest.mark.parametrize("template", PUBLISHED[1:], indirect=True)
def test_a_crash_while_recovering_from_a_crash(template, tmp_path, paper):
    writes = writes_of_publishing(template, tmp_path / "count", paper)
    chance = random.Random(7)
    for number in range(60):
        site = opened(template, tmp_path / str(number), paper)
        crashed(site, Clock(chance.randrange(1, writes + 1), chance.random() < 0.5))
        for _ in range(2):
            site = site.reopen()
            with pytest.MonkeyPatch.context() as patch:
                install(Clock(chance.randrange(1, writes), chance.random() < 0.5), patch, site)
                try:
                    site.publish(5)
                except Crash:
                    continue
        site = site.reopen()
        recovered(site, paper, template)
        site.store.close()
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.parametrize("luck", ["all lost", "some lost", "some lost again"])
@pytest.mark.parametrize("template", PUBLISHED, indirect=True)
def test_a_power_cut_at_every_write(template, luck, tmp_path, paper):
    """Writes that no fsync covers are dropped, torn, or kept without their neighbours."""
    writes = writes_of_publishing(template, tmp_path / "count", paper)
    for at in range(1, writes + 1):
        chance = None if luck == "all lost" else random.Random(f"{luck}/{at}")
        site = opened(template, tmp_path / f"{at}-before", paper)
        disk = Disk(site.folder)
        crashed(site, Clock(at, after=True), disk)
        (tmp_path / str(at)).mkdir()
        disk.after_power_cut(tmp_path / str(at) / "ledger", chance)
        crashes.copy_database(site.database, tmp_path / str(at) / "ledger.db")
        site.store.close()
        again = paper.Site(tmp_path / str(at), opened=False)
        again.number = template[1] + WAITING
        recovered(again, paper, template)
        again.store.close()
        shutil.rmtree(tmp_path / str(at))
        shutil.rmtree(tmp_path / f"{at}-before")


def test_the_simulated_disk_drops_what_is_not_synced(tmp_path, monkeypatch):
    """Without this, the power cuts above would prove nothing."""
    root = tmp_path / "disk"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    disk = Disk(root)
    disk.install(monkeypatch)

    def write(name, data, *, sync):
        handle = os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(handle, data)
        if sync:
            os.fsync(handle)
        os.close(handle)

    def image(name, chance=None):
        disk.after_power_cut(tmp_path / name, chance)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    write("unsynced", b"1", sync=False)
    write("synced", b"2", sync=True)
    write("old", b"new", sync=False)
    assert image("a") == {"old": b"old"}
    folder = os.open(root, os.O_RDONLY)
    os.fsync(folder)
    assert image("b") == {"old": b"old", "synced": b"2", "unsynced": b""}
    (root / "synced").rename(root / "old")
    assert image("c") == {"old": b"old", "synced": b"2", "unsynced": b""}
    seen = {frozenset(image(f"r{n}", random.Random(n)).items()) for n in range(40)}
    assert {len(dict(one)) for one in seen} == {2, 3}
    os.fsync(folder)
    os.close(folder)
    assert image("d") == {"old": b"2", "unsynced": b""}


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done-untold"])
def test_a_crash_at_every_write_of_an_append_and_its_retry(after, tmp_path, paper):
    for at in range(1, 4):  # BEGIN, INSERT, COMMIT
        folder = tmp_path / str(at)
        folder.mkdir()
        site = paper.Site(folder)
        data = paper.made(1, "config.changed", {"digest": "1" * 64})
        clock = Clock(at, after)
        with pytest.MonkeyPatch.context() as patch:
            install(clock, patch, site)
            with pytest.raises(Crash):
                site.log.append("key/1", data)
        assert clock.names[:at] == ["execute"] * at
        again = site.reopen()
        stored = again.log.find("key/1")
        assert (stored is not None) == (at == 3 and after)
        value = again.log.append("key/1", data)
        assert stored in (None, value)
        again.publish()
        assert verify.verify_log(again.folder, paper.VKEYS).size == 2
        again.store.close()


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done-untold"])
def test_a_crash_at_every_write_of_a_log_s_first_hour(after, tmp_path, paper):
    """From an empty folder to the first checkpoint; the same calls again lead there."""
    at, done = 0, False
    while not done:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            connections = connected_under(Clock(at, after), patch)
            try:
                paper.Site(folder).publish()
                done = True
            except Crash:
                for one in connections:
                    one.close()
        site = paper.Site(folder)
        site.publish()
        assert verify.verify_log(site.folder, paper.VKEYS).size == 1
        site.store.close()
    assert at > 50


def connected_under(clock, patch):
    """The connections that stores open from here on, each watched."""
    connect, made = store._connect, []

    def connected(*given):
        made.append(connect(*given))
        return Watched(clock, made[-1])

    crashes.watch_files(clock, patch)
    patch.setattr(store, "_connect", connected)
    return made


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("template", PUBLISHED, indirect=True)
def test_an_error_of_the_disk_at_every_write(template, number, tmp_path, paper):
    """The sequencer stops for good; nothing is signed after it; a new one goes on."""
    writes = writes_of_publishing(template, tmp_path / "count", paper)
    failures = 0
    for at in range(1, writes + 1):
        site = opened(template, tmp_path / str(at), paper)
        failures += failed(site, at, number, paper)
        again = site.reopen()
        recovered(again, paper, template)
        again.store.close()
        shutil.rmtree(tmp_path / str(at))
    assert failures > writes - 15  # some removals of what is tidied may fail unnoticed


def failed(site, at, number, paper):
    """Whether an error at the `at`-th write was an error at all."""

    def strike(name):
        if name.startswith("execute"):
            raise sqlite3.OperationalError("disk I/O error")
        raise OSError(number, os.strerror(number))

    clock, sequencer = Clock(at, strike=strike), site.sequencer()
    with pytest.MonkeyPatch.context() as patch:
        install(clock, patch, site)
        try:
            with sequencer:
                try:
                    sequencer.sequence(paper.NOW)
                except StorageFailed:
                    signed = site.store.head().text
                    with pytest.raises(StorageFailed, match="has stopped"):
                        sequencer.sequence(paper.NOW)
                    assert site.store.head().text == signed
                    raise
        except StorageFailed:
            return True
    return False


def test_a_full_database_refuses_and_keeps_what_it_took(tmp_path, paper):
    """SQLite's own "database or disk is full", not a simulated one."""
    site = paper.Site(tmp_path)
    pages = site.store._writer.execute("PRAGMA page_count").fetchone()[0]
    site.store._writer.execute(f"PRAGMA max_page_count = {pages + 4}")
    taken = []
    with pytest.raises(StorageFailed, match="full"):  # noqa: PT012  the n-th one, whichever
        for _ in range(1000):
            taken += site.fill(1)
    assert taken
    site.store._writer.execute("PRAGMA max_page_count = 1000000")
    site.number -= 1  # the caller retries
    taken += site.fill(1)
    site.publish()
    assert [site.log.covered(leaf.unref(one)) for one in taken] == list(range(1, len(taken) + 1))
    assert verify.verify_log(site.folder, paper.VKEYS).size == len(taken) + 1
    site.store.close()
