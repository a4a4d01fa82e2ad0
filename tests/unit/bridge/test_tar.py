"""bridge.continuity.tar: a backup is whole or not there; hostile and damaged ones are refused."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from bridge.continuity import tar
from bridge.errors import Refused, StorageFull, WrongUse

FILES = {
    "site.toml": b"name = 1\n",
    "db/state.db": bytes(1000),
    "empty": b"",
    "a/b/c.dcm": b"x" * 513,
}


def anything(_name):
    return True


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "b.tar"
    with tar.writing(path, {"kind": "site", "format": 1}) as writer:
        for name, data in FILES.items():
            writer.add(name, data)
    return path


def unpacked(path, tmp_path, allowed=anything):
    target = tmp_path / "out"
    target.mkdir()
    said = tar.read(path, target, allowed)
    found = {
        file.relative_to(target).as_posix(): file.read_bytes()
        for file in target.rglob("*")
        if file.is_file()
    }
    return said, found


def by_hand(path, *members):
    """A tar as somebody else might make it."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, kind, data in members:
            head = tarfile.TarInfo(name)
            head.type, head.size = kind, len(data)
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                head.linkname = "/etc/passwd"
            file.addfile(head, io.BytesIO(data))
    return path


def test_what_goes_in_comes_out(archive, tmp_path):
    said, found = unpacked(archive, tmp_path)
    assert said == {"kind": "site", "format": 1} == tar.about(archive)
    assert found == FILES
    assert archive.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))


def test_any_tar_reads_it(archive):
    listed = subprocess.run(["tar", "tf", archive], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["about.json", *FILES, "manifest.txt"]


def test_one_byte_of_any_file_is_noticed_and_the_file_is_named(archive, tmp_path):
    data = archive.read_bytes()
    with tarfile.open(archive) as file:
        members = [(m.name, m.offset_data, m.size) for m in file.getmembers()]
    for number, (name, start, size) in enumerate(members):
        for place in {start, start + size // 2, start + size - 1} if size else ():
            bad = tmp_path / f"bad-{number}-{place}"
            bad.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            (tmp_path / f"{number}-{place}").mkdir()
            with pytest.raises(Refused) as refusal:
                unpacked(bad, tmp_path / f"{number}-{place}")
            if name != "manifest.txt":
                assert name in str(refusal.value)


def test_one_byte_of_any_header_is_noticed_or_changes_nothing(archive, tmp_path):
    data = archive.read_bytes()
    with tarfile.open(archive) as file:
        headers = [member.offset for member in file.getmembers()]
    refused = 0
    for start in headers:
        for place in range(start, start + 512, 7):
            bad = tmp_path / "bad"
            bad.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            folder = tmp_path / f"{place}"
            folder.mkdir()
            try:
                assert unpacked(bad, folder)[1] == FILES
            except Refused:
                refused += 1
    assert refused > 100


def test_one_that_ends_early_or_goes_on_is_refused(archive, tmp_path):
    data = archive.read_bytes()
    for number, size in enumerate((0, 100, 512, 1500, len(data) - 1024 - 512, len(data) - 2000)):
        (tmp_path / f"cut-{number}").write_bytes(data[:size])
        (tmp_path / f"{number}").mkdir()
        with pytest.raises(Refused):
            unpacked(tmp_path / f"cut-{number}", tmp_path / f"{number}")
    (tmp_path / "more").write_bytes(data + data)
    with pytest.raises(Refused, match="goes on after its end"):
        unpacked(tmp_path / "more", tmp_path)


NAMES = [
    "../x", "/etc/x", "a/../../x", "a/./x", "./x", "a//x", "a\\x", "a\nx", ".hidden", "a/ x",
    "-rf", "a" * 101, "/".join("a" * 17), "nul\0x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(Refused), tar.writing(tmp_path / "b.tar", {}) as writer:
        writer.add(name, b"")
    assert list(tmp_path.iterdir()) == []
    if "\0" not in name:
        by_hand(tmp_path / "bad", ("about.json", tarfile.REGTYPE, b"{}\n"),
                (name, tarfile.REGTYPE, b"x"))  # fmt: skip
        with pytest.raises(Refused):
            unpacked(tmp_path / "bad", tmp_path)
        assert not [one for one in tmp_path.rglob("x") if one.is_file()]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
             tarfile.BLKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME],
)  # fmt: skip
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    by_hand(tmp_path / "bad", ("about.json", tarfile.REGTYPE, b"{}\n"), ("x", kind, b""))
    with pytest.raises(Refused, match="no regular file"):
        unpacked(tmp_path / "bad", tmp_path)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    with tar.writing(tmp_path / "b.tar", {}) as writer:
        writer.add("a", b"1")
        writer.add("a", b"2")
    with pytest.raises(Refused, match="a stands twice"):
        unpacked(tmp_path / "b.tar", tmp_path)


def test_a_file_below_a_file_is_refused(tmp_path):
    with tar.writing(tmp_path / "b.tar", {}) as writer:
        writer.add("a", b"1")
        writer.add("a/b", b"2")
    with pytest.raises(Refused, match="a/b stands twice"):
        unpacked(tmp_path / "b.tar", tmp_path)


def test_a_file_that_does_not_belong_there_is_refused(archive, tmp_path):
    with pytest.raises(Refused, match=r"a/b/c\.dcm does not belong"):
        unpacked(archive, tmp_path, allowed=lambda name: name != "a/b/c.dcm")


def test_what_is_no_archive_is_a_sentence(tmp_path):
    (tmp_path / "x").write_bytes(b"hello" * 1000)
    with pytest.raises(Refused):
        tar.about(tmp_path / "x")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_given):
        raise OSError(28, "No space left on device")

    def write():
        with tar.writing(tmp_path / "b", {}) as one:
            one.add("a", b"1")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull, match="No space left"):
            write()
    assert list(tmp_path.iterdir()) == []
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(StorageFull):
        tar.Writer(file, io.BytesIO(), b"{}\n", lambda _count: None)


def test_a_file_that_is_there_is_not_overwritten(archive):
    before = archive.read_bytes()
    with pytest.raises(WrongUse, match="is there already"), tar.writing(archive, {}):
        pass
    assert archive.read_bytes() == before


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def write():
        with tar.writing(tmp_path / "b", {}) as writer:
            writer.add("a", b"1")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(3 << 20))

    def shrink(count):
        if count > 1000 and path.stat().st_size > 1 << 20:
            os.truncate(path, 1 << 20)

    with (
        pytest.raises(Refused, match="x ends too early"),
        tar.writing(tmp_path / "b", {}, shrink) as w,
    ):
        w.add_file("x", path)
    assert not (tmp_path / "b").exists()


def test_a_file_that_is_gone_is_left_out(tmp_path):
    with tar.writing(tmp_path / "b", {}) as writer:
        assert writer.add_file("x", tmp_path / "nothing") is False
    assert unpacked(tmp_path / "b", tmp_path)[1] == {}
