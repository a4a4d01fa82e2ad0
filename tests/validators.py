"""What independent programs say of an object: dciodvfy, PixelMed, dcmqi.

Each returns values to compare. `enter(validators.present())` skips where one is missing.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import servers

_JAVA = Path("/usr/share/java")


@contextlib.contextmanager
def present() -> Iterator[None]:
    """Raise servers.MissingError for the first program that is not here."""
    servers.program("dciodvfy", "dicom3tools")
    servers.program("java", "default-jre-headless")
    if not (_JAVA / "pixelmed.jar").exists():
        raise servers.MissingError("PixelMed is not installed: apt-get install libpixelmed-java")
    for name in ("tid1500reader", "segimage2itkimage"):
        _dcmqi(name)
    yield


def _dcmqi(name: str) -> str:
    beside = Path(sys.executable).parent / name  # a wheel: dcmqi is no Debian package
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise servers.MissingError(f"{name} is not installed: pip install dcmqi")
    return found


def _said(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=240,
        check=False,
    )
    return done.stdout + done.stderr


def dciodvfy_errors(path: Path) -> list[str]:
    """Return dciodvfy's lines that begin with Error."""
    said = _said(servers.program("dciodvfy", "dicom3tools"), path)
    return [line for line in said.splitlines() if line.startswith("Error")]


def pixelmed_errors(path: Path) -> list[str]:
    """Return DicomSRValidator's lines that begin with Error, or that it did not get through."""
    said = _said(
        "java",
        *(f"-Djdk.xml.xpath{kind}Limit=0" for kind in ("ExprOp", "TotalOp", "ExprGrp")),
        *("-cp", f"{_JAVA}/pixelmed.jar:{_JAVA}/*"),
        *("com.pixelmed.validate.DicomSRValidator", path),
    )
    wrong = [line for line in said.splitlines() if line.startswith("Error")]
    through = ("Found Root Template TID_1500", "Root Template Validation Complete")
    return wrong + [f"never said: {line}" for line in through if line not in said]


def tid1500(path: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the measurement groups that dcmqi's tid1500reader finds."""
    target = folder / "tid1500.json"
    said = _said(_dcmqi("tid1500reader"), "--inputDICOM", path, "--outputMetadata", target)
    assert target.exists(), said
    return list(json.loads(target.read_text("utf-8"))["Measurements"])


def segments(path: Path, folder: Path) -> dict[int, tuple[np.ndarray, list[float], list[float]]]:
    """Return dcmqi's voxels [slice, row, column] of each segment, with origin and spacing (mm)."""
    out = folder / "segments"
    out.mkdir()
    said = _said(
        _dcmqi("segimage2itkimage"),
        *("--inputDICOM", path, "--outputDirectory", out, "--outputType", "nrrd"),
    )
    found = {int(nrrd.stem): _nrrd(nrrd) for nrrd in out.glob("*.nrrd")}
    assert found, said
    return found


def _nrrd(path: Path) -> tuple[np.ndarray, list[float], list[float]]:
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode("ascii").splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    raw = gzip.decompress(body) if fields["encoding"] == "gzip" else body
    kinds = {"short": "<i2", "unsigned char": "u1", "unsigned short": "<u2", "uchar": "u1"}
    sizes = [int(n) for n in fields["sizes"].split()]
    voxels = np.frombuffer(raw, kinds[fields["type"]]).reshape(sizes[::-1])
    axes = [_vector(text) for text in fields["space directions"].split(" ")]
    spacing = [float(np.linalg.norm(axis)) for axis in axes]
    return voxels, _vector(fields["space origin"]), spacing


def _vector(text: str) -> list[float]:
    return [float(value) for value in text.strip("()").split(",")]
