"""A real chest CT of two series goes the whole way into a real PACS, and holds there.

One study, two kernels, JPEG-LS: B40f (30 images) is what ct-lung-air wants, B70f
(6 images) is not. By one association, and by two with the wrong series first.
"""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

import house
import numpy as np
import pydicom
import pytest
import servers
import validators
from pydicom.uid import (
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

pytestmark = pytest.mark.peer

B40F, B70F = "ct_chest_siemens_b40f_8mm", "ct_chest_siemens_b70f_8mm_first6"
VOXELS = 801_916
KINDS = {Comprehensive3DSRStorage: "sr", SegmentationStorage: "seg"}
KINDS |= {SecondaryCaptureImageStorage: "summary"}


def _series(shared: Path, name: str) -> list[Path]:
    return sorted((shared / "corpus" / "dev" / "series" / name).glob("*.dcm"))


@pytest.fixture(scope="module")
def delivered(shared, enter, tmp_path_factory):
    """Both ways sent to one site; what became of each, with the PACS that received it."""
    folder = tmp_path_factory.mktemp("chest")
    packages = shared / "models" / "packages"
    enter(validators.present())
    pacs = enter(servers.orthanc())
    site = enter(
        house.served(
            packages=[packages / "ct-lung-air"],
            key=packages / "keys" / "TEST-ONLY.pub.pem",
            destinations=[house.destination("pacs", pacs.ae_title, pacs.port)],
            quiet_seconds=5,
            folder=folder / "house",
        )
    )
    b40f, b70f = _series(shared, B40F), _series(shared, B70F)
    site.send([*b40f, *b70f])
    uids: dict[str, str] = {}
    late = house.renamed(b40f, folder / "b40f", uids)
    first = house.renamed(b70f, folder / "b70f", uids)
    site.send(first)
    time.sleep(2)
    site.send(late)
    studies = {"one": house.study_of(b40f[0]), "two": house.study_of(late[0])}
    told = {way: site.until(uid) for way, uid in studies.items()}
    return site, pacs, studies, told


def _objects(pacs, uid: str, folder: Path) -> dict[str, Path]:
    """Write what the PACS holds of this study into files, by kind."""
    found = {}
    for data in pacs.files(StudyInstanceUID=uid):
        dataset = pydicom.dcmread(BytesIO(data), stop_before_pixels=True)
        kind = KINDS[str(dataset.SOPClassUID)]
        assert kind not in found
        found[kind] = folder / f"{kind}.dcm"
        found[kind].write_bytes(data)
    return found


WAYS = pytest.mark.parametrize("way", ["one", "two"])


@WAYS
def test_exactly_one_run_on_the_soft_kernel(delivered, way):
    _, _, _, told = delivered
    story = told[way]
    assert story["line"]["state"] == "delivered"
    assert story["line"]["instances"] == 36
    assert story["line"]["generation"] == 1
    (route,) = story["routes"]
    assert (route["model"], route["state"]) == ("test.ct-lung-air", "reported")
    assert house.codes(story).count("inference.started") == 1
    assert house.codes(story).count("inference.completed") == 1
    (wanted,) = house.words(story, "wanted")
    assert "wants 30 images" in wanted
    assert {s["held"] for s in story["series"]} == {30, 6}
    assert all(line["index"] is not None for line in story["lines"] if line["leaf"])


@WAYS
def test_the_pacs_holds_sr_seg_and_summary_without_a_fault(delivered, way, tmp_path):
    _, pacs, studies, told = delivered
    objects = _objects(pacs, studies[way], tmp_path)
    assert sorted(objects) == ["seg", "sr", "summary"]
    made = {a["kind"]: a["sop_instance_uid"] for a in told[way]["routes"][0]["artifacts"]}
    for kind, path in objects.items():
        assert str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) == made[kind]
        assert validators.dciodvfy_errors(path) == [], kind
    assert validators.pixelmed_errors(objects["sr"]) == []


@WAYS
def test_others_read_the_same_numbers_and_voxels(delivered, way, tmp_path):
    _, pacs, studies, _ = delivered
    objects = _objects(pacs, studies[way], tmp_path)
    found = validators.segments(objects["seg"], tmp_path)
    assert list(found) == [1]
    voxels, _, spacing = found[1]
    assert int(np.count_nonzero(voxels)) == VOXELS
    segmented = pydicom.dcmread(objects["seg"])
    assert int(np.count_nonzero(segmented.pixel_array)) == VOXELS
    millilitres = VOXELS * float(np.prod(spacing)) / 1000
    (group,) = validators.tid1500(objects["sr"], tmp_path)
    assert group["ReferencedSegment"] == 1
    (volume,) = (
        float(item["value"])
        for item in group["measurementItems"]
        if item["quantity"]["CodeMeaning"] == "Volume"
    )
    assert volume == pytest.approx(millilitres, rel=1e-5)
    assert volume == pytest.approx(2681.2, abs=0.1)


@WAYS
def test_every_source_is_an_image_of_the_soft_kernel(delivered, way, tmp_path):
    _, pacs, studies, _ = delivered
    objects = _objects(pacs, studies[way], tmp_path)
    report = pydicom.dcmread(objects["sr"])
    series = {
        str(one.SeriesInstanceUID): len(one.ReferencedSOPSequence)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for one in study.ReferencedSeriesSequence
    }
    assert 30 in series.values()
    assert 6 not in series.values()


def test_pages_show_it_to_whoever_may_see_it(delivered):
    site, _, studies, told = delivered
    uid = studies["one"]
    page = site.get(f"/studies/{uid}", role="radiologist", accept="text/html")
    assert (page.status, page.kind) == (200, "text/html")
    assert b"CT lung air" in page.body or b"test.ct-lung-air" in page.body
    made = {a["kind"]: a["sop_instance_uid"] for a in told["one"]["routes"][0]["artifacts"]}
    picture = site.get(f"/studies/{uid}/artifacts/{made['summary']}.png", role="radiologist")
    assert (picture.status, picture.kind) == (200, "image/png")
    assert picture.body.startswith(b"\x89PNG")
    text = site.get(f"/studies/{uid}/artifacts/{made['sr']}.txt", role="radiologist")
    assert text.status == 200
    assert b"2681.2" in text.body
    listed = site.get("/studies", role="radiologist", accept="text/html")
    assert (listed.status, listed.kind) == (200, "text/html")
    assert uid.encode() in listed.body
    for path in (f"/studies/{uid}", f"/studies/{uid}.json", "/studies", "/metrics"):
        assert site.get(path, role=None).status in {401, 403}, path


def test_the_receipt_and_the_log_verify_without_the_house(delivered, tmp_path):
    site, _, _, told = delivered
    for artifact in told["one"]["routes"][0]["artifacts"]:
        receipt = tmp_path / f"{artifact['kind']}.tlog-proof"
        site.radseal("receipt", artifact["sop_instance_uid"], "-o", receipt)
        site.radseal("verify", receipt, "--vkey", site.folder / "ledger.vkey")
    site.radseal("verify", site.folder / "ledger", "--vkey", site.folder / "ledger.vkey")
