"""models.archive: a package as one zip; every trick that a zip can play is refused."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.archive import pack, unpack
from models.errors import PackageError
from models.folder import file_digests
from models.unzip import Bounds

MB = Bounds(size=1 << 20)
GOOD = {"PKG/configs/metadata.json": b"{}", "PKG/models/model.onnx": b"graph", "PKG.sig": b"{}"}


def zipped(folder: Path, entries: dict[str, bytes] | list[tuple[zipfile.ZipInfo | str, bytes]]):
    path = folder / "sent.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, data)
    return path


def refused(archive: Path, into: Path, bounds: Bounds = MB) -> str:
    into.mkdir(exist_ok=True)
    before = sorted(into.parent.rglob("*"))
    with pytest.raises(PackageError) as error:
        unpack(archive, into, bounds)
    outside = [path for path in into.parent.rglob("*") if into not in path.parents]
    assert sorted(outside) == [path for path in before if into not in path.parents]
    return str(error.value)


def test_what_was_packed_comes_out_the_same(make_package: Callable[..., Path], tmp_path: Path):
    root = make_package()
    signature = tmp_path / "any.sig"
    signature.write_bytes(b"signed")
    told: list[int] = []
    with (tmp_path / "sent.zip").open("wb") as out:
        pack(root, signature, out, told.append)
    into = tmp_path / "into"
    into.mkdir()
    found = unpack(tmp_path / "sent.zip", into, MB)
    assert file_digests(found) == file_digests(root)
    assert Path(f"{found}.sig").read_bytes() == b"signed"
    assert sum(told) == 6 + sum(p.stat().st_size for p in root.rglob("*") if p.is_file())


def test_what_the_zip_program_makes_is_taken(tmp_path: Path):
    folders = [("PKG/", b""), ("PKG/configs/", b"")]
    (tmp_path / "into").mkdir()
    root = unpack(zipped(tmp_path, [*folders, *GOOD.items()]), tmp_path / "into", MB)
    assert sorted(file_digests(root)) == ["configs/metadata.json", "models/model.onnx"]


@pytest.mark.parametrize(
    "name",
    [
        "../out", "PKG/../../out", "/etc/passwd", "PKG//x", "PKG/./x", "./PKG/x", "PKG\\..\\x",
        "C:\\x", "PKG/" + "d/" * 20 + "x", "PKG/" + "n" * 300, "PKG/a\nb", "PKG/\u202eexe", "",
        "..", "other/x", "other.sig", "PKG.sig/x", "x",
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere(name: str, tmp_path: Path):
    info = zipfile.ZipInfo("x")
    info.filename = name
    archive = zipped(tmp_path, [*GOOD.items(), (info, b"evil")])
    assert "name" in refused(archive, tmp_path / "into").lower()
    assert not list((tmp_path / "into").iterdir())


def test_a_name_with_a_zero_byte_is_not_what_it_seems(tmp_path: Path):
    archive = zipped(tmp_path, {**GOOD, "PKG/zero!hidden": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"zero!hidden", b"zero\0hidden"))
    assert "no plain path" in refused(archive, tmp_path / "into")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_link_or_a_device(kind: int, tmp_path: Path):
    info = zipfile.ZipInfo("PKG/link")
    info.external_attr = (kind | 0o777) << 16
    archive = zipped(tmp_path, [*GOOD.items(), (info, b"/etc/passwd")])
    assert "link or a special file" in refused(archive, tmp_path / "into")


@pytest.mark.parametrize("names", [("PKG/a", "PKG/a"), ("PKG/a", "PKG/A"), ("PKG/a/", "PKG/a")])
def test_a_name_that_is_there_twice(names: tuple[str, str], tmp_path: Path):
    with (
        pytest.warns(UserWarning, match="Duplicate")
        if names[0] == names[1]
        else pytest.MonkeyPatch.context()
    ):
        archive = zipped(tmp_path, [*GOOD.items(), *((name, b"") for name in names)])
    assert "twice" in refused(archive, tmp_path / "into")


def test_one_name_for_a_file_and_a_folder(tmp_path: Path):
    archive = zipped(tmp_path, [*GOOD.items(), ("PKG/a", b""), ("PKG/a/b", b"")])
    assert "a file and a folder" in refused(archive, tmp_path / "into")


def test_a_bomb_is_refused_before_it_is_lit(tmp_path: Path):
    archive = zipped(tmp_path, {**GOOD, "PKG/zeros": bytes(5 << 20)})
    assert archive.stat().st_size < 100_000
    assert "more than 1048576 bytes" in refused(archive, tmp_path / "into")


def test_a_bomb_that_lies_of_its_size_writes_no_more_than_it_says(tmp_path: Path):
    archive = zipped(tmp_path, {**GOOD, "PKG/zeros": bytes(5 << 20)})
    small, large = struct.pack("<L", 1000), struct.pack("<L", 5 << 20)
    archive.write_bytes(archive.read_bytes().replace(large, small))
    into = tmp_path / "into"
    assert "whole zip" in refused(archive, into)
    assert sum(path.stat().st_size for path in into.rglob("*") if path.is_file()) < 2000


def test_too_many_entries(tmp_path: Path):
    archive = zipped(tmp_path, {**GOOD, **{f"PKG/{n}": b"" for n in range(200)}})
    assert "203 entries" in refused(archive, tmp_path / "into", Bounds(100, 1 << 20))


def test_a_list_of_entries_that_would_fill_memory_is_not_read(tmp_path: Path):
    archive = zipped(tmp_path, GOOD)
    data = bytearray(archive.read_bytes())
    data[-10:-6] = struct.pack("<L", 1 << 30)
    archive.write_bytes(data)
    assert "too long" in refused(archive, tmp_path / "into")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    archive.write_bytes(bytes(data[:-22]) + end64 + locator + bytes(data[-22:]))
    assert "too long" in refused(archive, tmp_path / "into")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:0], lambda data: data[:2], lambda data: data[:-30],
        lambda data: data + b"x",
        lambda data: data.replace(b"graph", b"GRAPH"), lambda data: bytes(len(data)),
        lambda data: data[:-22] + data[-22:-2] + b"\x05\0" + b"hello",
    ],
    ids=["empty", "two bytes", "cut", "more behind", "other bytes", "zeros", "comment"],
)  # fmt: skip
def test_what_is_no_whole_zip(spoil: Callable[[bytes], bytes], tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in GOOD.items():
            archive.writestr(name, data)
    sent = tmp_path / "sent.zip"
    sent.write_bytes(spoil(buffer.getvalue()))
    assert "zip" in refused(sent, tmp_path / "into")


@pytest.mark.parametrize("missing", ["PKG.sig", "PKG/"])
def test_package_and_signature_are_both_there(missing: str, tmp_path: Path):
    left = {name: data for name, data in GOOD.items() if not name.startswith(missing)}
    assert "its signature NAME.sig" in refused(zipped(tmp_path, left), tmp_path / "into")


def test_another_way_of_compressing_or_a_password(tmp_path: Path):
    path = tmp_path / "sent.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("PKG/x", b"x")
    assert "other than deflate" in refused(path, tmp_path / "into")
    data = bytearray(zipped(tmp_path, GOOD).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused(path, tmp_path / "into")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), b"caf\xff\xfe"),  # no UTF-8
        (struct.pack("<L", 0x0605_4B50), None),  # the first entry begins before the file
    ],
)
def test_a_zip_whose_names_or_places_cannot_be(old: bytes, new: bytes | None, tmp_path: Path):
    sent = zipped(tmp_path, {**GOOD, "PKG/caf\N{LATIN SMALL LETTER E WITH ACUTE}": b"x"})
    data = sent.read_bytes()
    if new is None:
        at = data.rindex(old) + 16
        data = data[:at] + struct.pack("<L", len(data)) + data[at + 4 :]
    sent.write_bytes(data if new is None else data.replace(old, new))
    assert "is no whole zip" in refused(sent, tmp_path / "into")
