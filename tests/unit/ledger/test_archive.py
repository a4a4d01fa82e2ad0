"""ledger.archive: a zip with one spelling, and everything else refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from ledger.archive import Archive, Member, is_archive, write
from ledger.errors import VerifyError

CONTENTS = {"README.txt": b"hello\n", "records/00000001.tlog-proof": b"one", "empty": b""}


def written(path: Path, contents=None) -> Path:
    with path.open("wb") as file:
        write(file, CONTENTS if contents is None else contents)
    return path


def refused(path: Path) -> str:
    with pytest.raises(VerifyError) as caught:
        read_all(path)
    return str(caught.value)


def read_all(path: Path) -> dict[str, bytes]:
    with Archive(path) as archive:
        return {name: archive.read(name, 1 << 20) for name in archive.members}


def test_what_is_written_is_read_back_in_order(tmp_path):
    found = read_all(written(tmp_path / "a.zip"))
    assert list(found) == sorted(CONTENTS)
    assert found == CONTENTS


def test_any_unzip_opens_it(tmp_path):
    with zipfile.ZipFile(written(tmp_path / "a.zip")) as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == CONTENTS
        assert {info.external_attr >> 16 & 0o777 for info in other.infolist()} == {0o600}


def test_equal_members_give_equal_bytes(tmp_path):
    file = tmp_path / "empty.src"
    file.write_bytes(b"")
    first = written(tmp_path / "a.zip")
    other = written(tmp_path / "b.zip", {**dict(reversed(CONTENTS.items())), "empty": file})
    assert first.read_bytes() == other.read_bytes()


def test_every_flipped_byte_is_refused(tmp_path):
    data = bytearray(written(tmp_path / "a.zip").read_bytes())
    path = tmp_path / "flipped.zip"
    for place in range(len(data)):
        data[place] ^= 0x01
        path.write_bytes(data)
        assert refused(path), place
        data[place] ^= 0x01


def test_every_shorter_and_longer_file_is_refused(tmp_path):
    data = written(tmp_path / "a.zip").read_bytes()
    path = tmp_path / "cut.zip"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert refused(path), end
    for longer in (data + b"\0", b"\0" + data, data + data):
        path.write_bytes(longer)
        assert refused(path)


def test_a_changed_member_is_named(tmp_path):
    path = written(tmp_path / "a.zip")
    path.write_bytes(path.read_bytes().replace(b"hello", b"hullo"))
    assert refused(path) == "README.txt: was changed"


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../b", "a\\b", "a//b", "a/", "", "ä", "a b", "C:x", ".hidden", "a" * 201,
     "a/b/c/d/e/f/g", "x\n"],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_neither_written_nor_read(tmp_path, name):
    with pytest.raises((ValueError, UnicodeError)):
        written(tmp_path / "a.zip", {name: b"x"})
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as other:
        other.writestr(zipfile.ZipInfo(name or "/"), b"x")
    assert refused(tmp_path / "b.zip")


def test_a_bomb_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as other:
        other.writestr("README.txt", bytes(50 << 20))
    assert "README.txt: its header" in refused(tmp_path / "bomb.zip")


def test_what_another_program_zipped_is_refused_with_what_to_do(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        for name, data in sorted(CONTENTS.items()):
            other.writestr(name, data)
    assert "use the file as the hospital wrote it" in refused(tmp_path / "other.zip")


def test_two_members_of_one_name_and_disorder_are_refused(tmp_path):
    for names in (["a", "a"], ["b", "a"]):
        body, members = b"", []
        for name in names:
            one = Member(name, len(body) + 30 + len(name), 0, 0)
            body += one.local()
            members.append(one)
        central = b"".join(one.central() for one in members)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(central), len(body), 0)
        path = tmp_path / "twice.zip"
        path.write_bytes(body + central + end)
        assert refused(path) == f"{names[1]}: stands twice, or out of order"


def test_a_member_that_claims_more_than_there_is_is_refused(tmp_path):
    data = bytearray(written(tmp_path / "a.zip").read_bytes())
    struct.pack_into("<2I", data, 18, 1 << 31, 1 << 31)
    path = tmp_path / "long.zip"
    path.write_bytes(data)
    assert refused(path).startswith("README.txt: its header")


def test_a_member_longer_than_asked_for_is_refused(tmp_path):
    with Archive(written(tmp_path / "a.zip")) as archive, pytest.raises(VerifyError, match="most"):
        archive.read("README.txt", 5)


def test_a_member_that_is_not_there_is_named(tmp_path):
    with Archive(written(tmp_path / "a.zip")) as archive, pytest.raises(VerifyError) as caught:
        archive.read("checkpoint", 5)
    assert str(caught.value) == "checkpoint: is missing from the bundle"


def test_nothing_and_other_files_are_no_archive(tmp_path):
    for data in (b"", b"PK", b"hello", b"PK\5\6" + bytes(18)):
        path = tmp_path / "x.zip"
        path.write_bytes(data)
        assert refused(path)
    assert not is_archive(tmp_path)
    assert not is_archive(tmp_path / "absent")
    with pytest.raises(VerifyError, match="cannot be read"):
        Archive(tmp_path / "absent")
