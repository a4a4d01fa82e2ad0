"""What independent programs say of our objects: dciodvfy, PixelMed, dcmqi, DCMTK.

On a chest CT of 30 slices and a head MR of 384, both of the shared corpus.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from bridge.audit.part10 import frames_in_child
from bridge.report import check, content, seg, sr, summary
from models.findings import VOLUME, Box, Code, Findings, Measurement, Segment

pytestmark = pytest.mark.peer

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "reporting.py")))
GIVEN = (made.MODEL, made.GATEWAY)
SERIES = {"ct": "ct_chest_siemens_b40f_8mm", "mr": "mr_t1_head_384"}
JAVA = Path("/usr/share/java")


def _missing(what: str) -> None:
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{what} is missing (CI installs every peer)", pytrace=False)
    pytest.skip(f"{what} is not installed here")


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        _missing(name)
    return str(found)


def _run(*command: object, code: int | None = 0) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=240, errors="replace"
    )
    said = done.stdout + done.stderr
    assert code is None or done.returncode == code, said[-2000:]
    return said


def _headers(folder: Path) -> list[Dataset]:
    found = [pydicom.dcmread(p, stop_before_pixels=True) for p in folder.iterdir() if p.is_file()]
    normal = np.cross(
        np.array(found[0].ImageOrientationPatient[:3], float),
        np.array(found[0].ImageOrientationPatient[3:], float),
    )
    return sorted(found, key=lambda d: float(normal @ np.array(d.ImagePositionPatient, float)))


def _balls(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Return a label array with `count` balls of different sizes that do not touch the rim."""
    rng = np.random.default_rng(7)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    labels = np.zeros(shape, np.uint8)
    for k in range(1, count + 1):
        centre = rng.uniform(0.3, 0.7, 3) * shape
        radius = np.array(shape) * rng.uniform(0.05, 0.2)
        ball = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radius, strict=True))
        labels[ball < 1] = k
    return labels


def _findings(sources: list[Dataset], labels: np.ndarray) -> Findings:
    step = np.linalg.norm(
        np.array(sources[1].ImagePositionPatient, float)
        - np.array(sources[0].ImagePositionPatient, float)
    )
    voxel = float(sources[0].PixelSpacing[0]) * float(sources[0].PixelSpacing[1]) * float(step)
    numbers = [int(n) for n in np.unique(labels) if n]
    segments = tuple(
        Segment(
            k,
            n,
            f"Region {n}",
            made.ANATOMY,
            made.LUNG if k == 1 else Code(f"R{n}", "99RADSEAL", f"Region {n}"),
            int((labels == n).sum()),
            (255 - 9 * n, 9 * n, 120),
        )
        for k, n in enumerate(numbers, start=1)
    )
    volumes = tuple(
        Measurement(VOLUME, s.voxels * voxel / 1000, made.ML, s.number) for s in segments
    )
    uids = tuple(str(s.SOPInstanceUID) for s in sources)
    return Findings("segmentation", f"{len(segments)} regions.", uids, segments, volumes)


@pytest.fixture(scope="module", params=sorted(SERIES))
def made_of(request, shared, tmp_path_factory):
    """One series with every kind of object that we compose of it, as files."""
    sources = _headers(shared / "corpus" / "dev" / "series" / SERIES[request.param])
    shape = (len(sources), int(sources[0].Rows), int(sources[0].Columns))
    labels = _balls(shape, 1 if request.param == "ct" else 17)
    found = _findings(sources, labels)
    segmented = seg.compose(found, labels, sources, *GIVEN, made.naming("seg"))
    middle = labels[len(sources) // 2]
    whole = (Measurement(made.LOW, 3.25, made.PERCENT),)
    statements = replace(
        made.classification(),
        frames=found.frames,
        qualitative=tuple(
            replace(q, sop_instance_uid=None) for q in made.classification().qualitative
        ),
    )
    half = len(sources) // 2
    boxes = tuple(
        Box(made.NODULE, "Nodule", 0.9 - k / 10, half, half - k, half + k, 10.5, 20.0, 40.25, 61.0,
            bool(k), 0.5, "balanced")
        for k in range(2)
    )  # fmt: skip
    detected = replace(
        statements, kind="detection", qualitative=statements.qualitative[1:],
        boxes=(boxes[0], replace(boxes[1], x0=12.0)),
    )  # fmt: skip
    none = replace(found, nothing_found=True, measurements=(), statement="Nothing found.")

    def report(kind, findings, segmentation=None):
        return sr.compose(findings, sources, *GIVEN, made.naming(kind), segmentation)

    objects = {
        "seg": segmented,
        "sr": report("sr", replace(found, measurements=found.measurements + whole), segmented),
        "statements": report("statements", statements),
        "boxes": report("boxes", detected),
        "none": report("none", none),
        "failure": sr.compose_failure("out of time", sources, *GIVEN, made.naming("failure")),
        "summary": summary.compose(
            found, (middle * 12).astype(np.uint8), middle, sources, *GIVEN, made.naming("sum")
        ),
    }
    folder = tmp_path_factory.mktemp(request.param)
    for kind, ds in objects.items():
        ds.save_as(folder / f"{kind}.dcm", enforce_file_format=True)
    return SimpleNamespace(
        sources=sources, labels=labels, found=found, objects=objects, folder=folder
    )


REPORTS = ["sr", "statements", "boxes", "none", "failure"]


def test_our_own_gate_passes(made_of):
    evidence = made_of.sources
    for kind, ds in made_of.objects.items():
        given = [*evidence, made_of.objects["seg"]] if kind == "sr" else evidence
        assert check.faults(ds, given) == [], kind


def test_dciodvfy_finds_no_error(made_of):
    programs = {_tool("dciodvfy")}
    if Path("/usr/bin/dciodvfy").exists():
        programs.add("/usr/bin/dciodvfy")
    for program in sorted(programs):
        for path in sorted(made_of.folder.glob("*.dcm")):
            said = _run(program, path, code=None)
            wrong = [line for line in said.splitlines() if line.startswith("Error")]
            assert wrong == [], (program, path.name)


def test_dcentvfy_finds_patient_and_study_consistent(made_of):
    """Only what differs: the source images themselves are not given to it."""
    said = _run(_tool("dcentvfy"), *sorted(made_of.folder.glob("*.dcm")), code=None)
    wrong = [line for line in said.splitlines() if line.startswith("Error")]
    assert [line for line in wrong if "Missing SOPInstanceUID" not in line] == []


@pytest.mark.parametrize("kind", REPORTS)
def test_pixelmed_finds_no_error(made_of, kind):
    if not (JAVA / "pixelmed.jar").exists() or not shutil.which("java"):
        _missing("PixelMed")
    limits = [f"-Djdk.xml.xpath{x}OpLimit=0" for x in ("Expr", "Total")]
    said = _run(
        "java",
        *limits,
        "-Djdk.xml.xpathExprGrpLimit=0",
        "-cp",
        f"{JAVA}/pixelmed.jar:{JAVA}/*",
        "com.pixelmed.validate.DicomSRValidator",
        made_of.folder / f"{kind}.dcm",
    )
    assert "Found Root Template TID_1500" in said
    assert "Root Template Validation Complete" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("kind", REPORTS)
def test_dsrdump_reads_the_report_without_complaint(made_of, kind):
    done = subprocess.run(
        [_tool("dsrdump"), str(made_of.folder / f"{kind}.dcm")],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"Imaging Measurement Report" in done.stdout
    assert b"E: " not in done.stderr


def test_dcmqi_reads_the_same_numbers(made_of, tmp_path):
    target = tmp_path / "report.json"
    source = made_of.folder / "sr.dcm"
    _run(_tool("tid1500reader"), "--inputDICOM", source, "--outputMetadata", target)
    groups = json.loads(target.read_text("utf-8"))["Measurements"]
    expected = {m.segment: m.value for m in made_of.found.measurements}
    assert len(groups) == len(expected)
    for group in groups:
        value = float(group["measurementItems"][0]["value"])
        assert value == pytest.approx(expected[int(group["ReferencedSegment"])], rel=1e-12)


def test_dcmqi_reads_the_same_voxels(made_of, tmp_path):
    source = made_of.folder / "seg.dcm"
    _run(
        _tool("segimage2itkimage"),
        *("--inputDICOM", source, "--outputDirectory", tmp_path, "--outputType", "nrrd"),
    )
    first = int(np.flatnonzero(made_of.labels.any(axis=(1, 2)))[0])
    where = [float(v) for v in made_of.sources[first].ImagePositionPatient]
    for segment in made_of.found.segments:
        voxels, origin = _nrrd(tmp_path / f"{segment.number}.nrrd")
        assert origin == pytest.approx(where, abs=1e-3)
        expected = made_of.labels[first : first + len(voxels)] == segment.index
        assert int(expected.sum()) == segment.voxels
        assert np.array_equal(expected, voxels.astype(bool))


def _nrrd(path: Path) -> tuple[np.ndarray, list[float]]:
    """Read the NRRD that ITK writes: [slice, row, column] and the origin (LPS, mm)."""
    import gzip

    data = path.read_bytes()
    head, _, body = data.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode("ascii").splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    raw = gzip.decompress(body) if fields["encoding"] == "gzip" else body
    kinds = {"short": "<i2", "unsigned char": "u1", "unsigned short": "<u2", "uchar": "u1"}
    sizes = [int(n) for n in fields["sizes"].split()]
    voxels = np.frombuffer(raw, kinds[fields["type"]]).reshape(sizes[::-1])
    return voxels, [float(v) for v in fields["space origin"].strip("()").split(",")]


@pytest.mark.parametrize("kind", ["seg", "sr", "summary"])
def test_the_digest_survives_dcmtk(made_of, kind, tmp_path):
    source, target = made_of.folder / f"{kind}.dcm", tmp_path / "again.dcm"
    digest = content.content_digest(made_of.objects[kind])
    options = [["+ti"], ["+te", "+g"], ["+te", "-e"], ["+tb"]]
    for option in options:
        _run(_tool("dcmconv"), *option, source, target)
        assert content.content_digest(pydicom.dcmread(target)) == digest, option
    if kind == "summary":
        _run(_tool("dcmcrle"), "+un", source, target)
        assert pydicom.dcmread(target).file_meta.TransferSyntaxUID.is_encapsulated
        assert content.content_digest(pydicom.dcmread(target), frames_in_child) == digest
        _run(_tool("dcmdrle"), target, tmp_path / "raw.dcm")
        assert content.content_digest(pydicom.dcmread(tmp_path / "raw.dcm")) == digest


def test_names_in_any_script_survive(shared, tmp_path):
    """PN of every file of the corpus, as pydicom reads them there and in our report."""
    dcm2json, seen = _tool("dcm2json"), 0
    for path in sorted((shared / "corpus" / "dev" / "charset").glob("*.dcm")):
        source = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if not source.get("PatientName"):
            continue
        images = made.sources()
        images[0].SpecificCharacterSet = source.get("SpecificCharacterSet", "")
        images[0]["PatientName"] = source["PatientName"]
        ds = sr.compose(made.classification(), images, *GIVEN, made.naming("sr"), None)
        target = tmp_path / path.name
        ds.save_as(target, enforce_file_format=True)
        told = json.loads(_run(dcm2json, target))["00100010"]["Value"][0]
        forms = ("Alphabetic", "Ideographic", "Phonetic")
        heard = "=".join(told.get(form, "") for form in forms).rstrip("=")
        assert heard == str(source.PatientName).rstrip("="), path.name
        assert content.attribute_digests(ds)["00100010"] == str(source.PatientName).encode()
        seen += 1
    assert seen >= 10
