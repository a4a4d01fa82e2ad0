"""Canary names through a whole site: none may sing in logs, metrics, ledger, vault or engine.

Invariants 6 and 11. One service takes a study that is read, one whose pixels are broken, one
that nobody wants, one that was refused, a stranger's image and a file that is no DICOM; one
destination takes all, one is down, one refuses with the patient's name in its comment.
"""

from __future__ import annotations

import json
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import house
import pytest
import servers
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt

from bridge.demo import pacs, phantom
from bridge.files import arrival_name
from bridge.report.identity import derived_uid
from bridge.store.tables import METADATA

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore:Invalid value for VR DA"),  # a birth date that is none
]

NAME, ID, ACCESSION = "Canarius^Ophelia^Q", "CANID4711", "CANACC9"
STRANGER, REFUSED, BROKEN_DATE = "CANSTRANGER", "CANREFUSED", "19CANDOB"
BIRTH = date(1948, 2, 29)
TEXTS = {
    "StudyDescription": "CanaryStudy knee",
    "SeriesDescription": "CanarySeries axial",
    "ReferringPhysicianName": "Canaref^Doctor",
    "InstitutionName": "CanaryHouse",
    "PatientComments": "CanaryComment",
    "OtherPatientIDs": "CANOTHERID",
    "PatientAddress": "CanaryStreet 1",
    "StationName": "CANSTATION",
}
CANARIES = [
    "Canarius", "Ophelia", ID, ACCESSION, STRANGER, REFUSED, BROKEN_DATE, "19480229", "1948-02-29",
    *(value.split(" ")[0].split("^")[0] for value in TEXTS.values()),
]  # fmt: skip
AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
ISSUER_SYSTEM = "urn:oid:1.2.3"


@cache
def chest() -> phantom.Phantom:
    return phantom.chest_ct(7)


def study(name: str, slices: slice = slice(None), **tags: object) -> list[Dataset]:
    patient = phantom.Patient(name=NAME, id=ID, issuer="GH", birth_date=BIRTH)
    made = phantom.to_datasets(
        chest(), uid=lambda *parts: derived_uid("canary", name, *parts), now=AT,
        patient=patient, accession=ACCESSION,
    )[slices]  # fmt: skip
    for dataset in made:
        for keyword, value in {**TEXTS, **tags}.items():
            setattr(dataset, keyword, value)
    return made


def broken(datasets: list[Dataset]) -> list[Dataset]:
    for dataset in datasets:
        dataset.PixelData = dataset.PixelData[:1000]
    return datasets


class Rude:
    """A PACS that refuses everything and repeats the patient's name."""

    def __init__(self) -> None:
        ae = AE(ae_title="RUDE")
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian])
        self.server: Any = ae.start_server(
            (servers.HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._refuse)]
        )
        self.port = self.server.server_address[1]

    def _refuse(self, _event: object) -> Dataset:
        status = Dataset()
        status.Status = 0xC000
        status.ErrorComment = f"{NAME} {ID}"
        return status


def refusal() -> str:
    coding = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREATDS"}
    return json.dumps({
        "resourceType": "Consent", "status": "active",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"identifier": {"system": ISSUER_SYSTEM, "value": REFUSED},
                    "display": NAME},
        "dateTime": "2026-01-01",
        "policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-basic-normal"}],
        "provision": {"type": "deny", "purpose": [coding]},
    })  # fmt: skip


def search(site: house.House, text: str) -> None:
    """Look for a patient as the page does: by POST."""
    request = urllib.request.Request(
        f"http://{servers.HOST}:{site.http_port}/studies/search",
        data=urllib.parse.urlencode({"text": text}).encode(),
        headers={"Authorization": f"Bearer {site.token('operator')}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def sung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A site after its day, stopped; `uids` are its studies, `metrics` what it counted."""
    folder = tmp_path_factory.mktemp("canary")
    good, rude = pacs.FakePACS("GOOD"), Rude()
    wanted = [
        house.destination("good", "GOOD", good.port, partial=True),
        house.destination("rude", "RUDE", rude.port, send=["sr"]),
        house.destination("down", "DOWN", servers.free_port(), send=["sr"]),
    ]
    tables = {"patients": {"issuer": "GH", "issuer_system": ISSUER_SYSTEM}}
    try:
        with house.served(folder=folder, destinations=wanted, tables=tables) as site:
            (model,) = json.loads(site.radseal("model", "list", "--json").stdout)
            site.radseal("model", "approve", model["id"], "--by", "dr-approver")
            site.radseal("model", "activate", model["id"], "--by", "dr-approver")
            uids, metrics = day(site, folder)
            told = {name: site.story(uid) for name, uid in uids.items()}
        yield SimpleNamespace(
            site=site, uids=uids, told=told, metrics=metrics, good=good, folder=folder
        )
    finally:
        good.close()
        rude.server.shutdown()


def day(site: house.House, folder: Path) -> tuple[dict[str, str], str]:
    (folder / "refusal.json").write_text(refusal())
    site.radseal("consent", "add", folder / "refusal.json")
    stranger = study("read", slice(5, 6))
    stranger[0].SOPInstanceUID = derived_uid("canary", "stranger")
    stranger[0].PatientID = STRANGER
    sent = {
        "read": study("read"),
        "broken": broken(study("broken", slice(0, 60), PatientBirthDate=BROKEN_DATE)),
        "unwanted": study("unwanted", slice(0, 3), Modality="MR"),
        "refused": study("refused", slice(0, 60), PatientID=REFUSED),
    }
    inbox = site.folder / "instances/inbox"
    rubbish = f"{NAME} {ID} {ACCESSION}".encode() * 50
    (inbox / f"{arrival_name(1, 1, 1, house.MODALITY)}.dcm").write_bytes(rubbish)
    for datasets in (*sent.values(), stranger):
        pacs.send(datasets, site.port, house.AE_TITLE, house.MODALITY)
    uids = {name: str(datasets[0].StudyInstanceUID) for name, datasets in sent.items()}
    servers.wait_until(
        lambda: site.state(uids["read"]) == "working", seconds=90, what="the run of the study"
    )
    for name, states in (
        ("broken", house.OVER), ("unwanted", house.OVER), ("refused", house.OVER),
        ("read", ("working",)),
    ):  # fmt: skip
        servers.wait_until(
            lambda uid=uids[name], states=states: site.state(uid) in states,
            seconds=90, what=f"the end of the study {name}",
        )  # fmt: skip
    servers.wait_until(
        lambda: tried(site, uids["read"]) >= {"stored", "dead", "waiting"},
        seconds=90, what="an attempt at each destination",
    )  # fmt: skip
    for uid in uids.values():
        site.get(f"/studies/{uid}", role="radiologist")
    site.radseal("retry", uids["broken"])
    search(site, ID)
    search(site, "Ophelia")
    site.get(f"/studies?text={ID}")
    site.get(f"/studies/{ID}")
    return uids, site.get("/metrics", role="administrator").body.decode()


def tried(site: house.House, uid: str) -> set[str]:
    told = site.story(uid) or {"routes": []}
    return {
        sent["state"]
        for route in told["routes"]
        for artifact in route["artifacts"]
        for sent in artifact["deliveries"]
        if sent["attempts"] > 0
    }


def heard(data: bytes | str, names: list[str]) -> list[str]:
    """Which canaries are in these bytes, as text in one or two bytes a letter, in any case."""
    raw = data.encode() if isinstance(data, str) else data
    low = raw.lower()
    return [
        name
        for name in names
        if name.lower().encode() in low or name.lower().encode("utf-16-le") in low
    ]


def test_the_day_was_a_whole_one(sung: SimpleNamespace) -> None:
    """Else silence proves nothing."""
    told = sung.told
    assert told["read"]["routes"][0]["state"] == "reported"
    assert told["read"]["quarantined"]
    assert told["broken"]["line"]["state"] in {"failed", "working"}  # it is tried again
    assert told["unwanted"]["line"]["state"] == "unwanted"
    assert told["refused"]["line"]["state"] == "denied"
    assert len(sung.good.received) >= 4
    reasons = [row["reason"] for row in sung.site.quarantine()]
    assert any("no DICOM" in reason for reason in reasons)
    report = next(iter(sung.good.received.values()))
    assert ID.encode() in report


def test_the_log_is_silent(sung: SimpleNamespace) -> None:
    text = sung.site.log.read_text(errors="replace")
    assert "listener.ready" in text
    assert not heard(text, [*CANARIES, *sung.uids.values(), "2.25."])


def test_the_metrics_are_silent(sung: SimpleNamespace) -> None:
    assert "radseal_deliveries_total" in sung.metrics
    assert not heard(sung.metrics, [*CANARIES, *sung.uids.values(), "2.25."])


def test_the_ledger_is_silent(sung: SimpleNamespace) -> None:
    names = [*CANARIES, *sung.uids.values(), "2.25."]
    files = [f for f in (sung.site.folder / "ledger").rglob("*") if f.is_file()]
    files += list(sung.site.folder.glob("ledger.*"))
    assert len(files) > 4
    for file in files:
        assert not heard(file.read_bytes(), names), file.name


def test_the_engines_rows_are_silent(sung: SimpleNamespace) -> None:
    names = [*CANARIES, *sung.uids.values(), "2.25."]
    with sqlite3.connect(sung.site.folder / "state.db") as database:
        tables = [
            row[0]
            for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if row[0] not in METADATA.tables
        ]
        assert "workflow_status" in tables
        assert "operation_outputs" in tables
        for table in tables:
            for row in database.execute(f"SELECT * FROM {table}"):  # noqa: S608 - from the schema
                assert not heard(repr(row), names), table


def test_the_vault_is_silent(sung: SimpleNamespace) -> None:
    for file in sung.site.folder.glob("vault.db*"):
        assert not heard(file.read_bytes(), CANARIES), file.name


def test_no_file_is_named_after_a_patient_and_the_work_folder_holds_none(
    sung: SimpleNamespace,
) -> None:
    for path in sung.site.folder.rglob("*"):
        assert not heard(path.name, [*CANARIES, *sung.uids.values()]), path
    for path in (sung.site.folder / "work").rglob("*"):
        if path.is_file():
            assert not heard(path.read_bytes(), CANARIES), path


@pytest.mark.parametrize("command", [("doctor",), ("runs",)])
def test_commands_about_the_site_are_silent(
    sung: SimpleNamespace, command: tuple[str, ...]
) -> None:
    done = sung.site.radseal(*command, code=None)
    assert not heard(done.stdout + done.stderr, CANARIES)


def test_a_command_that_fails_repeats_no_patient(sung: SimpleNamespace) -> None:
    done = sung.site.radseal("consent", "add", sung.folder / "refusal.json", said="", code=None)
    assert not heard(done.stdout + done.stderr, CANARIES)
    done = sung.site.radseal("retry", sung.uids["unwanted"], code=1)
    assert not heard(done.stderr, CANARIES)
