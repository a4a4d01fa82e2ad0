"""Who has a site's log open while it is continued: nobody. Locks across processes, and what waits.

And what a log that goes on is bound to: its own name, whatever settings somebody has read before.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import bench
import pytest
from typer.testing import CliRunner

from bridge import cli, site, turns
from bridge.cli.opened import opened
from bridge.continuity import restore, succession
from bridge.continuity.restore import Plan
from bridge.errors import Refused, SettingsError, WrongUse
from bridge.home import create, open_rooms, publish
from bridge.origins import ended
from ledger.store import SqliteStore
from ledger.verify import read_vkeys, verify_log

NEW = "new.example.org/log"
HOLDS = """
import sys
from pathlib import Path
from bridge.cli.opened import opened
with opened(Path(sys.argv[1])) as rooms:
    print("open", flush=True)
    sys.stdin.readline()
    rooms.record.say("config.changed", "config/late", {"digest": "5" * 64})
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    made = create(tmp_path_factory.mktemp("template") / "s", "n", bench.ORIGIN).folder
    with opened(made):
        pass
    return made


@pytest.fixture
def folder(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "s"))


@pytest.fixture
def soon(monkeypatch):
    """Nobody waits for long."""
    monkeypatch.setattr(turns, "WAIT", 0.2)
    monkeypatch.setattr(succession, "WAIT", 0.2)


def verify(folder):
    return verify_log(folder / "ledger", read_vkeys((folder / "ledger.vkey").read_text()))


def radseal(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def carry_on(folder):
    succession.begin(site.read(folder), NEW, None, "size", "clerk")
    succession.finish(folder)


@pytest.mark.usefixtures("soon")
def test_a_command_in_another_process_keeps_its_log_until_it_ends(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "open\n"
        refused = radseal("ledger", "continue", NEW, "--current", "--site", folder)
        assert isinstance(refused.exception, Refused)
        assert "radseal worker" in str(refused.exception)
        assert ended.under_way(folder) is None  # nothing was begun
        other.stdin.write("\n")
        other.stdin.close()
        assert other.wait() == 0
    done = radseal("ledger", "continue", NEW, "--current", "--site", folder)
    assert done.exit_code == 0, done.exception
    assert verify(folder).counts == {"log.continued": 1}
    old = verify(folder / "ledger-closed/1")
    assert old.counts["config.changed"] == 1  # what the other said is of the log it said it in


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "words", [("ledger", "continue", NEW, "--current"), ("key", "rotate"), ("key", "retire-old")]
)
def test_whoever_changes_the_log_is_refused_while_it_is_open(folder, words):
    with turns.using(folder):
        refused = radseal(*words, "--site", folder).exception
    assert isinstance(refused, Refused)
    assert "uses this site's log; end it" in str(refused)
    with turns.using(folder), turns.using(folder):
        pass  # others share it


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("words", [("status",), ("studies",), ("backup", "FILE")])
def test_a_command_is_refused_while_the_log_is_changed(folder, words, tmp_path):
    words = [tmp_path / "b.tar" if word == "FILE" else word for word in words]
    with succession.alone(folder):
        refused = radseal(*words, "--site", folder).exception
    assert isinstance(refused, Refused)
    assert "ledger continue" in str(refused)
    assert radseal(*words, "--site", folder).exit_code == 0


def test_serve_is_refused_while_the_log_is_changed(folder):
    with succession.alone(folder):
        done = subprocess.run(
            [sys.executable, "-m", "bridge", "serve", "--site", folder], capture_output=True,
            text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert "ledger continue" in done.stderr


def test_a_command_that_waited_reads_the_settings_of_the_log_that_goes_on(folder):
    said = []

    def command():
        with opened(folder) as rooms:
            said.append(rooms.site.origin)

    waits = threading.Thread(target=command)
    with succession.alone(folder):
        waits.start()
        carry_on(folder)
    waits.join()
    assert said == [NEW]
    assert verify(folder).counts == {"log.continued": 1}


def test_rotate_retire_and_continue_open_what_they_hold(folder):
    for words in (
        ("key", "rotate"), ("key", "retire-old"), ("ledger", "continue", NEW, "--current"),
        ("ledger", "continue", NEW, "--current"),
    ):  # fmt: skip
        done = radseal(*words, "--site", folder)
        assert done.exit_code == 0, done.exception
    assert verify(folder).origin == NEW


def test_where_there_is_no_site_no_lock_is_made(tmp_path):
    for words in (("status",), ("ledger", "continue", NEW, "--current"), ("key", "rotate")):
        with pytest.raises(SettingsError, match="radseal init"):
            raise radseal(*words, "--site", tmp_path / "none").exception
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SettingsError, match="radseal init"):
            raise radseal(*words, "--site", tmp_path / "empty").exception
        assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
        assert not list((tmp_path / "empty").iterdir())


def test_an_error_of_the_work_itself_is_not_taken_for_a_lock(folder):
    with pytest.raises(turns.Busy), succession.alone(folder):
        raise turns.Busy
    with pytest.raises(turns.Busy), turns.using(folder):
        raise turns.Busy


def test_a_second_restore_to_the_same_folder_leaves_the_first_alone(tmp_path):
    part = tmp_path / "back.restoring"
    part.mkdir()
    (part / "half").write_text("")
    with (
        turns.Turns(part / ".locks").changing(0.0),
        pytest.raises(Refused, match="another restore"),
    ):
        restore.restore(Plan(tmp_path / "b.tar", None, None), tmp_path / "back", None, None)
    assert (part / "half").exists()


# --- the file that moves ------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [False, True])
def test_a_foreign_reader_of_the_rows_is_waited_for(folder, newer):
    """A database shell knows none of our locks, but SQLite's."""
    shell = sqlite3.connect(folder / "ledger.db")
    shell.execute("SELECT * FROM log").fetchall()
    point = verify(folder)
    from ledger.checkpoint import Checkpoint

    seen = Checkpoint(bench.ORIGIN, point.size + 9, b"\7" * 32) if newer else None
    succession.begin(site.read(folder), NEW, seen, "size", "clerk")
    with pytest.raises(Exception, match="end that, then type this again"):
        succession.finish(folder)
    assert not (folder / "ledger-closed/1/ledger.db").exists()
    shell.close()
    succession.finish(folder)
    assert not [path for path in folder.glob("ledger.db-*") if path.stat().st_size]
    rows = sqlite3.connect(folder / "ledger-closed/1/ledger.db")
    assert rows.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert rows.execute("SELECT count(*) FROM leaves").fetchone()[0] >= point.size


# --- what a log is bound to ---------------------------------------------------------------------


def test_settings_read_before_the_continuation_open_nothing(folder):
    stale = site.read(folder)
    carry_on(folder)
    with pytest.raises(SettingsError, match=f"goes on as {NEW}"):
        open_rooms(stale, None)
    rooms = open_rooms(site.read(folder), None)
    publish(rooms)
    assert rooms.record.log.origin == NEW
    assert verify(folder).counts == {"log.continued": 1}


def test_the_new_log_has_its_name_before_anybody_opens_it(folder):
    carry_on(folder)
    store = SqliteStore(folder / "ledger.db")
    rows = sqlite3.connect(folder / "ledger.db")
    assert rows.execute("SELECT origin, size FROM log").fetchall() == [(NEW, 0)]
    rows.close()
    store.close()


def test_an_origin_that_is_edited_after_a_continuation_is_refused(folder):
    carry_on(folder)
    text = (folder / "site.toml").read_text(encoding="utf-8")
    (folder / "site.toml").write_text(text.replace(NEW, "typo.example.org/log"), encoding="utf-8")
    with pytest.raises(SettingsError, match=f"goes on as {NEW}"), opened(folder):
        pass


def test_a_site_that_is_served_says_so(folder):
    with succession.alone(folder), pytest.raises(WrongUse, match="radseal serve"):
        raise radseal("key", "rotate", "--site", folder).exception


# --- on the disk --------------------------------------------------------------------------------


def test_a_folder_is_on_the_disk_before_anything_moves_into_it(folder, monkeypatch):
    told = []
    rename, sync = Path.rename, os.fsync

    def renamed(path, target):
        told.append(("rename", Path(target).parent))
        return rename(path, target)

    def synced(handle):
        told.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        return sync(handle)

    succession.begin(site.read(folder), NEW, None, "size", "clerk")
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    succession.finish(folder)
    place = folder / "ledger-closed/1"
    first = told.index(("rename", place))
    assert ("fsync", folder) in told[:first]  # the name ledger-closed
    assert ("fsync", folder / "ledger-closed") in told[:first]  # the name 1
    last = len(told) - 1 - told[::-1].index(("rename", place))
    before = [one for one in told[first:last] if one[0] == "fsync"]
    assert {("fsync", place), ("fsync", folder)} <= set(before)  # what moved, before it counts
