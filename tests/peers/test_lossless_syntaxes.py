"""One CT in every lossless transfer syntax: the same pixels, digest and voxels, by each decoder.

Strangers encode it: DCMTK, GDCM, OpenJPEG, CharLS, OpenJPH. Three slices and one
encoder a syntax always; all 30 and every encoder with RADSEAL_SOAK=full.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gdcm
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import decoders
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID

from models import sandbox
from models.package import Package, load
from models.sandbox import Limits

pytestmark = pytest.mark.peer

CHEST = "corpus/dev/series/ct_chest_siemens_b40f_8mm"
WHOLE = os.environ.get("RADSEAL_SOAK") == "full"
FEW = slice(12, 15)
FEW_VOXELS, ALL_VOXELS = 122_128, 801_916  # test_models_corpus.py has scipy count each slice
LIMITS = Limits(memory_mb=4096, timeout_s=300)


@dataclass(frozen=True)
class Read:
    """What the product made of the series in one syntax."""

    input_digest: str
    pixels: frozenset[tuple[str, str, int]]
    decoders: tuple[str, ...]
    voxels: int


Encoder = Callable[[Path, Path], None]


def _dcmtk(servers: Any, name: str, *options: str) -> Encoder:
    def encode(source: Path, target: Path) -> None:
        words = [servers.program(name, "dcmtk"), *options, str(source), str(target)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    return encode


def _pydicom(syntax: str, plugin: str) -> Encoder:
    def encode(source: Path, target: Path) -> None:
        image = pydicom.dcmread(source)
        image.compress(UID(syntax), encoding_plugin=plugin, generate_instance_uid=False)
        image.save_as(target, enforce_file_format=True)

    return encode


def _gdcm(kind: int) -> Encoder:
    """GDCM's pixels under the source's header: its writer adds RescaleType, which rules read."""

    def encode(source: Path, target: Path) -> None:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(kind))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(target))
        assert writer.Write()
        image, coded = pydicom.dcmread(source), pydicom.dcmread(target)
        image["PixelData"] = coded["PixelData"]
        image.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
        image.save_as(target, enforce_file_format=True)

    return encode


def _openjph(order: str, syntax: str) -> Encoder:
    """A stranger's HTJ2K: one codestream, wrapped by us."""

    def encode(source: Path, target: Path) -> None:
        image = pydicom.dcmread(source)
        plain, coded = target.with_suffix(".pgm"), target.with_suffix(".j2c")
        top = 2**image.BitsStored - 1
        plain.write_bytes(
            f"P5 {image.Columns} {image.Rows} {top}\n".encode()
            + image.pixel_array.astype(">u2").tobytes()
        )
        options = ["-reversible", "true", "-prog_order", order]
        words = ["ojph_compress", "-i", str(plain), "-o", str(coded), *options]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        image.PixelData = encapsulate([coded.read_bytes()])
        image["PixelData"].VR = "OB"
        image.file_meta.TransferSyntaxUID = UID(syntax)
        image.save_as(target, enforce_file_format=True)
        plain.unlink()
        coded.unlink()

    return encode


LITTLE = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4."


HTJ2K = {f"{JPEG}201", f"{JPEG}202"}
LOSSY = {f"{JPEG}{n}" for n in (50, 51, 81, 91, 203)}


def _taken() -> set[str]:
    """Each lossless syntax that a decoder installed here takes."""
    known = [one for one in vars(decoders).values() if isinstance(one, Decoder)]
    return {str(one.UID) for one in known if one.is_available} - LOSSY


def _strangers(servers: Any) -> list[tuple[str, str, Encoder | None]]:
    """Each lossless syntax, who encodes it, and how; None where no encoder is here."""
    there = shutil.which("ojph_compress") is not None
    kinds = gdcm.TransferSyntax
    return [
        (LITTLE, "dcmdjpls", _dcmtk(servers, "dcmdjpls")),
        ("1.2.840.10008.1.2", "dcmconv", _dcmtk(servers, "dcmconv", "+ti")),
        ("1.2.840.10008.1.2.2", "dcmconv", _dcmtk(servers, "dcmconv", "+tb")),
        ("1.2.840.10008.1.2.1.99", "dcmconv", _dcmtk(servers, "dcmconv", "+td")),
        ("1.2.840.10008.1.2.5", "dcmcrle", _dcmtk(servers, "dcmcrle", "+un")),
        ("1.2.840.10008.1.2.5", "gdcm", _gdcm(kinds.RLELossless)),
        (f"{JPEG}57", "dcmcjpeg", _dcmtk(servers, "dcmcjpeg", "+el", "+un")),
        (f"{JPEG}57", "gdcm", _gdcm(kinds.JPEGLosslessProcess14)),
        (f"{JPEG}70", "dcmcjpeg", _dcmtk(servers, "dcmcjpeg", "+e1", "+un")),
        (f"{JPEG}70", "gdcm", _gdcm(kinds.JPEGLosslessProcess14_1)),
        (f"{JPEG}80", "dcmcjpls", _dcmtk(servers, "dcmcjpls", "+el", "+un")),
        (f"{JPEG}80", "pyjpegls", _pydicom(f"{JPEG}80", "pyjpegls")),
        (f"{JPEG}90", "openjpeg", _pydicom(f"{JPEG}90", "pylibjpeg")),
        (f"{JPEG}90", "gdcm", _gdcm(kinds.JPEG2000Lossless)),
        (f"{JPEG}201", "openjph", _openjph("LRCP", f"{JPEG}201") if there else None),
        (f"{JPEG}202", "openjph", _openjph("RPCL", f"{JPEG}202") if there else None),
    ]


def read(package: Package, paths: list[Path], work: Path, syntax: str) -> Read:
    """Seal a series and run a package on it, as the service does."""
    for path in paths:
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        assert str(meta.TransferSyntaxUID) == syntax, path.name
    sealed = sandbox.seal(paths=paths, work=work, limits=LIMITS)
    outcome = sandbox.run(
        package=package, roles={"image": paths}, work=work, limits=LIMITS, cached=sealed.cached
    )
    (lungs,) = outcome.findings.segments
    return Read(
        sealed.input_digest, frozenset(sealed.instances), tuple(sealed.decoders), lungs.voxels
    )


@pytest.mark.timeout(900)
def test_every_lossless_syntax_gives_the_same_voxels(
    shared: Path, servers: Any, tmp_path: Path
) -> None:
    package = load(shared / "models/packages/ct-lung-air")
    files = sorted((shared / CHEST).iterdir())
    files = files if WHOLE else files[FEW]
    received = read(package, files, tmp_path / "received", f"{JPEG}80")
    plain: list[Path] = []
    wrong, away = [], _taken()
    for number, (syntax, who, encode) in enumerate(_strangers(servers)):
        if not WHOLE and syntax not in away:
            continue  # a second encoder of the same syntax
        here = f"{UID(syntax).name[:60]:60} by {who:9}"
        if encode is None:
            print(f"{here} | no encoder here (apt-get install openjph-tools)")
            continue
        coded = [tmp_path / f"{number}" / path.name for path in files]
        coded[0].parent.mkdir()
        for source, target in zip(plain if number else files, coded, strict=True):
            encode(source, target)
        plain = plain if number else coded
        found = read(package, coded, tmp_path / f"{number}-work", syntax)
        same = (found.input_digest, found.pixels, found.voxels) == (
            received.input_digest, received.pixels, received.voxels,
        )  # fmt: skip
        print(f"{here} | {found.voxels} | {', '.join(found.decoders)}")
        wrong += [] if same else [(syntax, who)]
        away.discard(syntax)
    assert wrong == []
    assert away <= HTJ2K
    assert received.voxels == (ALL_VOXELS if WHOLE else FEW_VOXELS)
