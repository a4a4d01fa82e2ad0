"""The ways in which studies arrive: refused, unwanted, in pieces, again, mixed, corrected.

One site, one Orthanc that is both the source whose counts are asked and the PACS
that results go to, as in most hospitals. Each test sends a chest CT under UIDs of
its own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import house
import pydicom
import pytest
import servers

pytestmark = pytest.mark.peer

QUIET, SETTLE = 2, 2
SYSTEM = "urn:oid:1.2.3.4"


@pytest.fixture(scope="module")
def hospital(shared, enter):
    """A site with ct-lung-air between a modality and an Orthanc that can be asked."""
    ports = servers.free_port(), servers.free_port()
    packages = shared / "models" / "packages"
    pacs = enter(servers.orthanc(modalities={"radseal": (house.AE_TITLE, ports[0])}))
    askable = {"host": servers.HOST, "port": pacs.port, "query": True}
    site = enter(
        house.served(
            packages=[packages / "ct-lung-air"],
            key=packages / "keys" / "TEST-ONLY.pub.pem",
            sources=[
                house.source("ct", house.MODALITY),
                house.source("pacs", pacs.ae_title, **askable),
            ],
            destinations=[house.destination("pacs", pacs.ae_title, pacs.port)],
            ports=ports,
            tables={
                "completion": {"quiet_seconds": QUIET, "settle_seconds": SETTLE},
                "patients": {"issuer": "GH", "issuer_system": SYSTEM},
            },
        )
    )
    return SimpleNamespace(site=site, pacs=pacs)


@pytest.fixture
def chest(shared, tmp_path):
    """Copy the chest CT: `chest("p1", PatientID="P1")` gives 30 files; UIDs are this test's."""
    series = shared / "corpus" / "dev" / "series" / "ct_chest_siemens_b40f_8mm"
    files = sorted(series.glob("*.dcm"))
    uids: dict[str, str] = {}

    def copy(name: str, part: slice = slice(None), **attributes: object) -> list[Path]:
        return house.renamed(files[part], tmp_path / name, uids, **attributes)

    return copy


def _results(pacs: Any, uid: str) -> list[dict[str, Any]]:
    """What the PACS holds of this study that we made."""
    return [
        one
        for one in pacs.find(StudyInstanceUID=uid)
        if pacs.get(f"/instances/{one['ID']}/simplified-tags").get("Manufacturer") == "radseal"
    ]


def _runs(told: dict[str, Any]) -> int:
    return house.codes(told).count("inference.started")


def _refusal(patient: dict[str, Any]) -> str:
    reason = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREAT"}
    scope = {"system": "http://terminology.hl7.org/CodeSystem/consentscope"}
    return json.dumps(
        {
            "resourceType": "Consent",
            "status": "active",
            "scope": {"coding": [{**scope, "code": "patient-privacy"}]},
            "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
            "patient": patient,
            "dateTime": "2024-01-01",
            "policy": [{"uri": "http://example.org/policies/privacy"}],
            "provision": {"type": "deny", "purpose": [reason]},
        }
    )


@pytest.mark.parametrize("named", ["by identifier", "on standard input"])
def test_a_patient_who_refused_is_not_read(hospital, chest, tmp_path, named):
    site, pacs = hospital.site, hospital.pacs
    patient = f"REFUSED-{len(named)}"
    files = chest("images", PatientID=patient)
    document = tmp_path / "consent.json"
    if named == "by identifier":
        document.write_text(_refusal({"identifier": {"system": SYSTEM, "value": patient}}))
        site.radseal("consent", "add", document)
    else:
        document.write_text(_refusal({"reference": "Patient/example"}))
        refused = site.radseal("consent", "add", document, code=1)
        assert "--patient -" in refused.stderr
        site.radseal("consent", "add", document, "--patient", "-", said=f"GH|{patient}\n")
    site.send(files)
    told = site.until(house.study_of(files[0]))
    assert told["line"]["state"] == "denied"
    assert _runs(told) == 0
    (answer,) = (line for line in told["lines"] if line["stage"] == "consent")
    assert (answer["code"], answer["index"] is not None) == ("deny", True)
    assert "TREATDS" in answer["words"]
    assert patient not in json.dumps(told["lines"])
    (route,) = told["routes"]
    assert (route["state"], route["reason"]) == ("denied", answer["words"])
    assert answer["words"] in site.radseal("why", house.study_of(files[0])).stdout.replace("\n", "")
    assert _results(pacs, house.study_of(files[0])) == []


def test_a_study_that_no_model_wants_says_why(hospital, chest):
    site, pacs = hospital.site, hospital.pacs
    files = chest("few", slice(0, 6))
    site.send(files)
    told = site.until(house.study_of(files[0]))
    assert told["line"]["state"] == "unwanted"
    (route,) = told["routes"]
    assert route["state"] == "not wanted"
    assert "20" in route["reason"]
    assert "6" in route["reason"]
    assert _runs(told) == 0
    (closed,) = (line for line in told["lines"] if line["code"] == "study.closed")
    assert closed["index"] is not None
    assert _results(pacs, house.study_of(files[0])) == []


def _into(pacs: Any, files: list[Path]) -> list[str]:
    return [pacs.post("/instances", path.read_bytes())["ID"] for path in files]


def _forward(pacs: Any, resources: list[str]) -> None:
    pacs.post("/modalities/radseal/store", {"Resources": resources, "Synchronous": True})


def test_a_pacs_that_forwards_while_it_receives_causes_no_early_run(hospital, chest):
    """It has 22 images (enough for the model), forwards them, then the others come in slowly."""
    site, pacs = hospital.site, hospital.pacs
    files = chest("images")
    uid = house.study_of(files[0])
    _forward(pacs, _into(pacs, files[:22]))
    late: list[str] = []
    for path in files[22:]:
        time.sleep(SETTLE / 4)
        late += _into(pacs, [path])
    time.sleep(2 * QUIET + SETTLE)  # the PACS counts 30, we hold 22: longer than any quiet period
    told = site.why(uid)
    assert told["line"]["state"] == "receiving"
    assert told["waiting"] == "22 of 30 images"
    assert told["routes"] == []
    assert [series["expected"] for series in told["series"]] == [30]
    _forward(pacs, late)
    told = site.until(uid)
    assert told["line"]["state"] == "delivered"
    assert _runs(told) == 1
    (complete,) = house.words(told, "complete")
    assert complete == "the source counts 30 images, all held, asked twice"
    assert "wants 30 images" in house.words(told, "wanted")[0]
    assert len(_results(pacs, uid)) == 3


def test_our_own_results_and_the_same_images_again_cause_nothing(hospital, chest):
    site, pacs = hospital.site, hospital.pacs
    files = chest("images")
    uid = house.study_of(files[0])
    _forward(pacs, _into(pacs, files))
    before = site.until(uid)
    made = {a["sop_instance_uid"] for a in before["routes"][0]["artifacts"]}
    site.send(files)
    (study,) = pacs.find("Study", StudyInstanceUID=uid)
    _forward(pacs, [study["ID"]])  # 30 images and 3 results of ours
    servers.wait_until(site.idle, what="indexing")
    time.sleep(QUIET + SETTLE + 2)
    told = site.why(uid)
    assert (told["line"]["state"], told["line"]["generation"]) == ("delivered", 1)
    assert told["line"]["instances"] == 30
    assert _runs(told) == 1
    assert len(house.words(told, "resent")) == 1
    assert len(house.words(told, "own")) == 1
    results = _results(pacs, uid)
    assert {one["MainDicomTags"]["SOPInstanceUID"] for one in results} == made
    assert len(told["routes"][0]["artifacts"]) == len(results) == 3


def test_late_images_open_the_next_generation(hospital, chest):
    site, pacs = hospital.site, hospital.pacs
    files = chest("images")
    uid = house.study_of(files[0])
    site.send(files[:24])
    first = site.until(uid)
    assert first["line"]["generation"] == 1
    site.send(files[24:])
    told = site.until(uid, generation=2)
    assert (told["line"]["state"], told["line"]["generation"]) == ("delivered", 2)
    assert _runs(told) == 2
    assert [len(r["artifacts"]) for r in told["routes"]] == [3, 3]
    revisions = [{a["revision"] for a in r["artifacts"]} for r in told["routes"]]
    assert revisions == [{1}, {2}]
    reports = [
        pydicom.dcmread(path)
        for path in _files(pacs, uid, site.folder.parent)
        if pydicom.dcmread(path, stop_before_pixels=True).Modality == "SR"
    ]
    first_sr, second_sr = sorted(reports, key=lambda d: d.SeriesNumber)
    (study,) = second_sr.PredecessorDocumentsSequence
    named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == first_sr.SOPInstanceUID


def _files(pacs: Any, uid: str, folder: Path) -> list[Path]:
    made = []
    for number, one in enumerate(_results(pacs, uid)):
        made.append(folder / f"result-{number}.dcm")
        made[-1].write_bytes(pacs.read(f"/instances/{one['ID']}/file"))
    return made


@pytest.mark.parametrize("refused", [False, True])
def test_a_second_patient_in_a_study_waits_for_a_person(hospital, chest, tmp_path, refused):
    site, pacs = hospital.site, hospital.pacs
    mine = chest("mine", slice(0, 25), PatientID="MIX-1", PatientName="One^Patient")
    other = f"MIX-2-{refused}"
    theirs = chest("theirs", slice(25, None), PatientID=other, PatientName="Two^Patient")
    uid = house.study_of(mine[0])
    assert house.study_of(theirs[0]) == uid
    if refused:
        document = tmp_path / "consent.json"
        document.write_text(_refusal({"identifier": {"system": SYSTEM, "value": other}}))
        site.radseal("consent", "add", document)
    site.send([*mine[:10], *theirs, *mine[10:]])
    told = site.until(uid)
    assert told["line"]["state"] == "attention"
    assert "5 images in quarantine" in told["line"]["state_words"]
    assert told["quarantined"] == [["a second patient's identity in one study", 5]]
    assert told["line"]["instances"] == 25
    assert "wants 25 images" in house.words(told, "wanted")[0]
    assert _runs(told) == 1
    listed = [one for one in site.quarantine() if one["study"] == uid]
    assert [(one["state"], one["instances"]) for one in listed] == [("quarantined", 5)]

    site.radseal("quarantine", "accept", uid, "--by", "dr-decider")
    told = site.until(uid, generation=2)
    assert [one for one in site.quarantine() if one["study"] == uid] == []
    assert told["line"]["instances"] == 30
    assert "dr-decider" in house.words(told, "accepted")[0]
    if refused:  # consent is asked for both, the stricter answer holds
        assert told["routes"][-1]["state"] == "denied"
        assert _runs(told) == 1
        assert len(_results(pacs, uid)) == 3
    else:
        assert told["line"]["state"] == "delivered"
        assert _runs(told) == 2
        assert "wants 30 images" in house.words(told, "wanted")[1]
        assert len(_results(pacs, uid)) == 6


def test_a_second_patient_at_an_askable_source_does_not_hold_up_the_first(hospital, chest):
    """The PACS files the study under two patients and counts 30; 25 of them are one patient's."""
    site, pacs = hospital.site, hospital.pacs
    mine = chest("mine", slice(0, 25), PatientID="ASK-1")
    theirs = chest("theirs", slice(25, None), PatientID="ASK-2")
    uid = house.study_of(mine[0])
    _forward(pacs, [*_into(pacs, mine[:20]), *_into(pacs, theirs)])
    late = _into(pacs, mine[20:])
    time.sleep(QUIET + 2 * SETTLE)
    told = site.why(uid)
    assert (told["line"]["state"], told["waiting"]) == ("receiving", "20 of 25 images")
    _forward(pacs, late)
    told = site.until(uid)
    assert told["line"]["state"] == "attention"
    assert (told["line"]["instances"], _runs(told)) == (25, 1)
    (complete,) = house.words(told, "complete")
    assert complete == "the source counts 30 images, 25 held and 5 set apart, asked twice"
    assert told["quarantined"] == [["a second patient's identity in one study", 5]]


def test_a_discarded_second_patient_is_not_read(hospital, chest):
    site, pacs = hospital.site, hospital.pacs
    mine = chest("mine", slice(0, 25), PatientID="KEEP-1")
    theirs = chest("theirs", slice(25, None), PatientID="DROP-2")
    uid = house.study_of(mine[0])
    site.send([*mine, *theirs])
    assert site.until(uid)["line"]["state"] == "attention"
    site.radseal("quarantine", "discard", uid, "--by", "dr-decider")
    told = site.why(uid)
    assert told["line"]["state"] == "delivered"
    assert told["quarantined"] == []
    assert (told["line"]["instances"], _runs(told)) == (25, 1)
    again = site.radseal("quarantine", "discard", uid, "--by", "dr-decider", code=1)
    assert again.stderr.strip() == "radseal: nothing of this study is in quarantine"
    assert len(_results(pacs, uid)) == 3


def test_a_corrected_patient_id_is_not_run_again_and_not_lost(hospital, chest):
    site, pacs = hospital.site, hospital.pacs
    files = chest("images", PatientID="WRONG-1", PatientName="Wrong^Name")
    uid = house.study_of(files[0])
    site.send(files)
    before = site.until(uid)
    corrected = chest("corrected", PatientID="RIGHT-1", PatientName="Right^Name")
    site.send(corrected[:10])
    servers.wait_until(
        lambda: "correcting" in house.codes(site.story(uid)), what="the first corrections"
    )
    site.send(corrected[10:])
    servers.wait_until(lambda: "identity" in house.codes(site.story(uid)), what="the correction")
    time.sleep(QUIET + SETTLE + 1)
    told = site.why(uid)
    assert (told["line"]["state"], told["line"]["generation"]) == ("delivered", 1)
    assert (told["line"]["patient_id"], told["line"]["patient_name"]) == ("RIGHT-1", "Right^Name")
    assert (told["line"]["instances"], _runs(told)) == (30, 1)
    assert told["quarantined"] == []
    assert "nothing is run again" in house.words(told, "identity")[0]
    assert told["routes"] == before["routes"]
    assert len(site.studies()) == len({one["study_instance_uid"] for one in site.studies()})
    assert len(_results(pacs, uid)) == 3
    # The next image of the study is of the corrected patient: it is late, not a stranger.
    page = site.get(f"/studies/{uid}", role="radiologist", accept="text/html").body.decode()
    assert "corrected the patient" in page


def test_a_patient_id_corrected_before_the_run_is_read_once(hospital, chest):
    site, pacs = hospital.site, hospital.pacs
    files = chest("images", PatientID="WRONG-2")
    uid = house.study_of(files[0])
    site.send(files[:15])
    site.send(chest("corrected", slice(0, 15), PatientID="RIGHT-2"))
    site.send(chest("rest", slice(15, None), PatientID="RIGHT-2"))
    told = site.until(uid)
    assert told["line"]["state"] == "delivered"
    assert told["line"]["patient_id"] == "RIGHT-2"
    assert (told["line"]["instances"], _runs(told)) == (30, 1)
    assert len(_results(pacs, uid)) == 3


def test_the_log_of_all_this_verifies(hospital):
    site = hospital.site
    site.radseal("verify", site.folder / "ledger", "--vkey", site.folder / "ledger.vkey")
