"""Files are whole under their names, or not there."""

from __future__ import annotations

import os

import pytest

from ledger import durable
from ledger.errors import StorageFailed


def test_written_files_are_synced_before_they_are_named(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, type(tmp_path).rename

    def watch_fsync(handle):
        events.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def watch_rename(self, target):
        events.append(("rename", str(target)))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(type(tmp_path), "rename", watch_rename)
    target = tmp_path / "a" / "b" / "file"
    durable.write({target: b"data"}, tmp_path / ".tmp")
    assert target.read_bytes() == b"data"
    named = events.index(("rename", str(target)))
    assert ("fsync", str(tmp_path / ".tmp" / "0")) in events[:named]
    assert {("fsync", str(tmp_path)), ("fsync", str(tmp_path / "a"))} <= set(events[:named])
    assert ("fsync", str(target.parent)) in events[named:]


def test_a_file_is_replaced(tmp_path):
    for data in (b"one", b"two"):
        durable.write({tmp_path / "x": data}, tmp_path / ".tmp")
    assert (tmp_path / "x").read_bytes() == b"two"


def test_an_error_of_the_disk_is_a_storage_failure(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed):
        durable.write({tmp_path / "file" / "x": b""}, tmp_path / ".tmp")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        durable.write({tmp_path / "y": b"data"}, tmp_path / ".tmp")
    assert not (tmp_path / "y").exists()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:3])))
    durable.write({tmp_path / "x": b"0123456789"}, tmp_path / ".tmp")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_removing_takes_the_empty_folder_along(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_bytes(b"")
    durable.remove(folder / "a")
    assert folder.is_dir()
    durable.remove(folder / "b")
    assert not folder.exists()
    durable.remove(folder / "c")
