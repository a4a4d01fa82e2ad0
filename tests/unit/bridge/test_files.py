"""bridge.files: names that come from no peer, bytes that are durable before they are called so."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge import files as room
from bridge.errors import StorageFull
from bridge.files import Attention, Files, arrival_name, calling_ae_of, received_ns_of


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path, tmp_path / "instances", 0)
    made.prepare()
    return made


@pytest.mark.parametrize("ae", ["CT1", "A B", "ÄÖÜ", "../../x", "x" * 40, ""])
def test_an_arrivals_name_says_when_and_from_whom(ae):
    name = arrival_name(123, 4, 5, ae)
    assert received_ns_of(name) == 123
    assert calling_ae_of(name) == (ae[:16].strip() or "\0")
    assert "/" not in name
    assert "." not in name


@pytest.mark.parametrize("name", ["", "x", "a-b-c-zz", "1-2", "-" * 9])
def test_a_foreign_name_says_nothing(name):
    assert calling_ae_of(name) == ""
    assert received_ns_of(name) in {0, 1}


def test_names_sort_by_time():
    assert arrival_name(9, 1, 0, "A") < arrival_name(10, 1, 0, "A")


def test_parts_of_a_listener_that_died_are_removed(files):
    (files.parts / "half").write_bytes(b"x")
    (files.inbox / "whole.dcm").write_bytes(b"x")
    files.clear_parts()
    assert not list(files.parts.iterdir())
    assert files.waiting() == 1


def test_folders_are_ours_alone_to_read(files):
    for folder in (files.instances, files.inbox, files.parts, files.artifacts, files.work):
        assert folder.stat().st_mode & 0o077 == 0, folder


def test_settle_links_and_clear_takes_the_name(files):
    path = files.inbox / "a.dcm"
    path.write_bytes(b"bytes")
    for _ in range(2):  # a repeat changes nothing
        files.settle(iter([(path, "1.2.3")]))
    target = files.instance("1.2.3", "a")
    assert target.read_bytes() == b"bytes"
    assert path.exists()
    files.clear([path])
    files.clear([path])
    assert target.exists()
    assert not path.exists()
    files.drop("1.2.3", "a")
    files.drop("1.2.3", "a")
    assert not target.exists()


@pytest.mark.parametrize("uid", ["../../../etc", "/etc/passwd", "1.2.3", "", "a\0b"])
def test_no_uid_becomes_a_path(files, uid):
    place = files.instance(uid, "a")
    assert place.resolve().is_relative_to(files.instances.resolve())
    assert files.artifact("0" * 32, uid).resolve().is_relative_to(files.artifacts.resolve())


def test_arrived_is_oldest_first_and_only_whole_files(files):
    for name in ("2.dcm", "1.dcm", "3.part"):
        (files.inbox / name).write_bytes(b"")
    assert [path.name for path in files.arrived(10)] == ["1.dcm", "2.dcm"]
    assert len(files.arrived(1)) == 1


def test_kept_artifacts_are_never_composed_again(files):
    first = files.keep_artifact("s", "1.2", b"first")
    assert files.keep_artifact("s", "1.2", b"second") == first
    assert first.read_bytes() == b"first"


def test_of_two_that_stamp_at_once_one_wins(files, monkeypatch):
    """Two destinations may come to it together: neither ever sends other bytes than the first."""
    link, late = os.link, []

    def slow(part, target):
        if not target.exists() and not late:
            late.append(part)
            files.keep_stamped("s", "1.2", b"the first")
        link(part, target)

    monkeypatch.setattr(room.os, "link", slow)
    path = files.keep_stamped("s", "1.2", b"the second")
    assert path == files.stamped("s", "1.2") == files.as_sent("s", "1.2")
    assert late
    assert path.read_bytes() == b"the first"
    assert not list(files.artifacts.rglob("*.part"))


def test_what_is_sent_is_the_composed_object_until_it_is_stamped(files):
    composed = files.keep_artifact("s", "1.2", b"x")
    assert files.as_sent("s", "1.2") == composed
    assert files.keep_stamped("s", "1.2", b"xy") == files.as_sent("s", "1.2") != composed


def test_an_artifact_is_fsynced_with_its_folder_before_it_has_its_name(files, monkeypatch):
    seen = []
    real = os.fsync

    def fsync(descriptor):
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(room.os, "fsync", fsync)
    path = files.keep_artifact("s", "1.2", b"x")
    assert seen[0].endswith(".part")
    assert seen[1:3] == [path.parent.name, "artifacts"]


def test_a_full_disk_is_storage_full_and_leaves_no_part(files, monkeypatch):
    def fsync(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room.os, "fsync", fsync)
    with pytest.raises(StorageFull, match="No space left"):
        files.keep_artifact("s", "1.2", b"x")
    assert not list(files.artifacts.rglob("*.part"))
    assert not list(files.artifacts.rglob("*.dcm"))


def test_the_watermark_is_free_space(tmp_path):
    roomy, full = Files(tmp_path, tmp_path, 0), Files(tmp_path, tmp_path, 10**12)
    assert not roomy.is_full()
    assert full.is_full()


def test_run_folders_come_and_go(files):
    folder = files.run_folder("r")
    (folder / "pixels").mkdir()
    files.drop_run_folder("r")
    files.drop_run_folder("r")
    assert not folder.exists()


def test_attention_is_paid_while_the_listener_holds_it(files):
    before, at = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    onlooker = Attention(files.instances / "listening")
    assert onlooker.since(before) == before  # nobody ever listened
    files.attention.pay(at)
    assert onlooker.since(before) == at
    files.attention.pay(at + timedelta(minutes=1))  # somebody was turned away
    assert onlooker.since(before) == at + timedelta(minutes=1)
    files.attention.cease()
    assert onlooker.since(before) is None
