"""A result comes back from archives that are not ours, and is verified from its file alone.

Through Orthanc, through an Implicit VR hop of DCMTK, after a correction of the patient's data by
dcmodify; and what dciodvfy, PixelMed and dcmqi say of an object with its receipt inside.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import validators
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from typer.testing import CliRunner

from bridge.cli import app
from bridge.errors import Refused

pytestmark = pytest.mark.peer

TESTS = Path(__file__).resolve().parents[1]
KINDS = ("seg", "sr", "summary")


@pytest.fixture(scope="module")
def stamped(tmp_path_factory):
    """Files with receipts, and the vkeys, in a folder: all that an auditor has."""
    folder = tmp_path_factory.mktemp("stamped")
    made = paper_results().PaperResults(tmp_path_factory.mktemp("site"))
    for kind in KINDS:
        (folder / f"{kind}.dcm").write_bytes(made.stamped[kind])
        (folder / f"{kind}-plain.dcm").write_bytes(made.plain[kind])
    (folder / "vkey").write_text("\n".join(made.vkeys) + "\n")
    return folder


def paper_results():
    sys.path.insert(0, str(TESTS))
    try:
        import paper_results as found
    finally:
        sys.path.remove(str(TESTS))
    return found


def radseal(path: Path, keys: Path) -> SimpleNamespace:
    """`radseal verify`, as a person reads it and as JSON."""
    text, said = (
        CliRunner().invoke(app, ["verify", str(path), "--vkey", str(keys), *more])
        for more in ((), ("--json",))
    )
    # What main() makes of it: one sentence to standard error, exit 1.
    assert text.exception is None or isinstance(text.exception, Refused)
    return SimpleNamespace(
        code=text.exit_code, lines=text.output.splitlines(), error=str(text.exception or ""),
        json=json.loads(said.output),
    )  # fmt: skip


def run(servers, name: str, *words: object) -> None:
    done = subprocess.run(
        [servers.program(name, "dcmtk"), *map(str, words)],
        capture_output=True, text=True, timeout=60, check=False, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def unchanged(path: Path, keys: Path) -> None:
    done = radseal(path, keys)
    assert done.code == 0, done.error
    assert done.json["identity"] == "unchanged"
    assert done.lines[0] == "content proven; patient identity is the one it was composed for"


def refused(path: Path, keys: Path, why: str) -> None:
    done = radseal(path, keys)
    assert done.code == 1
    assert done.json["verified"] is False
    assert why in done.error


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_orthanc(stamped, orthanc, kind, tmp_path):
    orthanc.post("/instances", (stamped / f"{kind}.dcm").read_bytes())
    (data,) = orthanc.files()
    (tmp_path / "back.dcm").write_bytes(data)
    unchanged(tmp_path / "back.dcm", stamped / "vkey")


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_implicit_hop(stamped, start, servers, kind, tmp_path):
    """storescu and storescp that both know Implicit VR only: the block comes back as UN."""
    hop = start("storescp", options=("+xi", "-dhl"))
    run(servers, "dcmconv", "+ti", stamped / f"{kind}.dcm", tmp_path / "implicit.dcm")
    run(servers, "storescu", "-xi", "-R", "-aec", hop.ae_title, hop.host, hop.port,
        tmp_path / "implicit.dcm")  # fmt: skip
    (back,) = hop.files()
    ds = dcmread(back)
    assert ds.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert ds[0x0099, 0x1001].VR == "UN"
    unchanged(back, stamped / "vkey")
    run(servers, "dcmconv", "+te", back, tmp_path / "explicit.dcm")
    assert dcmread(tmp_path / "explicit.dcm")[0x0099, 0x1001].VR == "UN"
    unchanged(tmp_path / "explicit.dcm", stamped / "vkey")


@pytest.mark.parametrize("options", [["+te", "+g"], ["+te", "-e"], ["+tb"], ["+td"]])
@pytest.mark.parametrize("kind", KINDS)
def test_in_every_spelling_of_dcmtk(stamped, servers, kind, options, tmp_path):
    run(servers, "dcmconv", *options, stamped / f"{kind}.dcm", tmp_path / "other.dcm")
    unchanged(tmp_path / "other.dcm", stamped / "vkey")


def test_compressed_on_the_way(stamped, servers, tmp_path):
    run(servers, "dcmcrle", stamped / "summary.dcm", tmp_path / "rle.dcm")
    assert dcmread(tmp_path / "rle.dcm").file_meta.TransferSyntaxUID.is_encapsulated
    unchanged(tmp_path / "rle.dcm", stamped / "vkey")


def modified(servers, source: Path, folder: Path, *changes: str) -> Path:
    target = folder / source.name
    shutil.copy(source, target)
    run(servers, "dcmodify", "-nb", "-m", changes[0], *changes[1:], target)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrected_patient_is_accepted_and_named(stamped, servers, kind, tmp_path):
    path = modified(servers, stamped / f"{kind}.dcm", tmp_path, "PatientName=Other^Name",
                    "-m", "PatientID=4711")  # fmt: skip
    done = radseal(path, stamped / "vkey")
    assert done.code == 0, done.error
    assert done.lines[0] == (
        "content proven; patient identity is not the one it was composed for: "
        "PatientName, PatientID"
    )
    assert done.json["identity"] == "changed"
    assert done.json["changed"] == ["PatientName", "PatientID"]
    assert "Other^Name" not in "\n".join(done.lines) + done.error


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("CompletionFlag=PARTIAL",), "the content is not what"),
        (("StudyInstanceUID=1.2.3",), "the content is not what"),
        (("SOPInstanceUID=1.2.3",), "the content is not what"),
    ],
)
def test_anything_else_that_dcmodify_changes_is_refused(stamped, servers, change, why, tmp_path):
    path = modified(servers, stamped / "sr.dcm", tmp_path, *change)
    refused(path, stamped / "vkey", why)


def test_one_byte_of_the_content_is_refused(stamped, tmp_path):
    data = bytearray((stamped / "seg.dcm").read_bytes())
    pixels = bytes(dcmread(BytesIO(bytes(data))).PixelData)
    data[data.rindex(pixels[:40]) + 20] ^= 1
    (tmp_path / "seg.dcm").write_bytes(data)
    refused(tmp_path / "seg.dcm", stamped / "vkey", "the content is not what")


@pytest.mark.parametrize("kind", KINDS)
def test_an_overlay_is_refused(stamped, servers, kind, tmp_path):
    shutil.copy(stamped / f"{kind}.dcm", tmp_path / "overlay.dcm")
    run(servers, "dcmodify", "-nb", "-i", "(6000,3000)=ff\\ff", tmp_path / "overlay.dcm")
    refused(tmp_path / "overlay.dcm", stamped / "vkey", "the content is not what")
    plain = dcmread(stamped / f"{kind}.dcm", stop_before_pixels=True)
    plain.save_as(tmp_path / "unknown.dcm", enforce_file_format=True)
    with (tmp_path / "unknown.dcm").open("ab") as file:
        file.write(b"\x00\x60\x00\x30UN\0\0\x02\0\0\0\xff\xff")
    refused(tmp_path / "unknown.dcm", stamped / "vkey", "has the VR UN")


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_element_is_refused(stamped, servers, kind, tmp_path):
    shutil.copy(stamped / f"{kind}.dcm", tmp_path / "private.dcm")
    run(servers, "dcmodify", "-nb", "-i", "(0011,0010)=SOMEBODY", tmp_path / "private.dcm")
    refused(tmp_path / "private.dcm", stamped / "vkey", "is a private element")


def test_a_block_moved_from_another_file_is_refused(stamped, tmp_path):
    for source, target in (("summary", "sr"), ("sr", "seg"), ("seg", "summary")):
        taken, into = (dcmread(stamped / f"{kind}.dcm") for kind in (source, target))
        del into[0x00990010:0x00991200]
        for element in taken.group_dataset(0x0099):
            into.add(element)
        into.save_as(tmp_path / f"{target}.dcm", enforce_file_format=True)
        refused(tmp_path / f"{target}.dcm", stamped / "vkey", "another kind of object")


def test_a_file_without_a_receipt_is_refused(stamped):
    refused(stamped / "sr-plain.dcm", stamped / "vkey", "no receipt")


def test_with_nothing_but_the_file_and_the_keys(stamped, tmp_path):
    """A process of its own in an empty folder, and its exit codes."""
    path = tmp_path / "sr.dcm"
    shutil.copy(stamped / "sr.dcm", path)

    def verify(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bridge", "verify", path, *words]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=120, check=False,
            cwd=TESTS.parent,
        )  # fmt: skip

    done = verify("--vkey", stamped / "vkey")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("content proven; patient identity is the one")
    done = verify()
    assert done.returncode == 2
    assert "--vkey" in done.stderr
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Lung volume", b"Lung vol0me", 1))
    assert path.read_bytes() != data
    done = verify("--vkey", stamped / "vkey")
    assert done.returncode == 1
    assert done.stderr.startswith("radseal: NOT verified: the content is not what")
    assert done.stdout == ""


def test_validators_find_no_more_than_before(stamped, enter, tmp_path):
    enter(validators.present())
    for kind in KINDS:
        with_it, without = (stamped / f"{kind}{end}.dcm" for end in ("", "-plain"))
        assert validators.dciodvfy_errors(with_it) == validators.dciodvfy_errors(without), kind
    assert validators.pixelmed_errors(stamped / "sr.dcm") == []
    folders = [tmp_path / "with", tmp_path / "without"]
    for folder in folders:
        folder.mkdir()
    groups = [validators.tid1500(stamped / f"sr{end}.dcm", folder)
              for end, folder in zip(("", "-plain"), folders, strict=True)]  # fmt: skip
    assert groups[0] == groups[1] != []
    voxels = [validators.segments(stamped / f"seg{end}.dcm", folder)
              for end, folder in zip(("", "-plain"), folders, strict=True)]  # fmt: skip
    assert voxels[0].keys() == voxels[1].keys()
    assert all((voxels[0][n][0] == voxels[1][n][0]).all() for n in voxels[0])
