"""Done 5 of the ledger at full strength: a canary patient is erased from a house at work.

A real service with its listener, worker and models; one study of the canary was read and
delivered, one is on its way to a PACS that hangs, one lies in the inbox, consent is kept, a
stranger's studies come in meanwhile. Then two people erase it, and every byte of the site folder
(on PostgreSQL every row, every sample of the planner's, too) is looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import sqlalchemy as sa
import ward as w
from pydicom import Dataset

from bridge.report.identity import derived_uid
from bridge.store.database import open_engine, reading
from bridge.store.tables import METADATA
from bridge.turns import Turns
from ledger.verify import read_vkeys, verify_log

pytestmark = [pytest.mark.fault, pytest.mark.timeout(280)]

NAME, ID, BIRTH, ACCESSION = "Canarius^Ophelia^Q", "CANID-4711", "19480229", "CANACC9"
TEXTS = {
    "StudyDescription": "CanaryStudy knee",
    "SeriesDescription": "CanarySeries axial",
    "ReferringPhysicianName": "Canaref^Doctor",
    "PatientComments": "CanaryComment",
    "StationName": "CANSTATION",
}


def study(name: str, slices: int = 3) -> list[Dataset]:
    """Make a study of the canary; no UID of it is anybody else's."""
    made = w.study(len(name), slices=slices)
    for dataset in made:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
                        "FrameOfReferenceUID"):  # fmt: skip
            setattr(dataset, keyword, derived_uid("canary", name, str(dataset[keyword].value)))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PatientName, dataset.PatientID = NAME, ID
        dataset.PatientBirthDate, dataset.AccessionNumber = BIRTH, ACCESSION
        for keyword, text in TEXTS.items():
            setattr(dataset, keyword, text)
    return made


BEFORE, SENDING, INBOX, AFTER, LIFTED = (
    study(name) for name in ("before", "sending", "in the inbox", "after it", "lifted again")
)


def uid(datasets: list[Dataset]) -> str:
    return str(datasets[0].StudyInstanceUID)


def canaries() -> list[str]:
    """Whatever names the patient or a study of his; the day of birth as DICOM and FHIR write it."""
    erased = [*BEFORE, *SENDING, *INBOX]
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    uids = {str(one[keyword].value) for one in erased for keyword in keywords}
    texts = [value.split(" ")[0].split("^")[0] for value in TEXTS.values()]
    return ["Canarius", "Ophelia", ID, BIRTH, "1948-02-29", ACCESSION, *texts, *uids]


def heard(data: bytes, names: list[str]) -> list[str]:
    low = data.lower()
    return [
        name
        for name in names
        if name.lower().encode() in low or name.lower().encode("utf-16-le") in low
    ]


def singing(folder: Path) -> dict[str, list[str]]:
    """Which files of the site hold which canaries; also in their names."""
    found = {}
    for file in folder.rglob("*"):
        name = str(file.relative_to(folder))
        data = file.read_bytes() if file.is_file() else b""
        if names := heard(data + name.encode(), canaries()):
            found[name] = names
    return found


def tables(url: str) -> Iterator[tuple[str, bytes]]:
    """Every row of every table of a database, and what its planner has sampled."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        named = connection.execute(sa.text(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_type = 'BASE TABLE' AND table_schema <> 'information_schema'"
        )).all()  # fmt: skip
        for schema, table in named:
            if schema == "pg_catalog" and table != "pg_statistic":
                continue
            rows = connection.execute(
                sa.text(f'SELECT t::text FROM "{schema}"."{table}" AS t')  # noqa: S608
            )
            yield f"{schema}.{table}", b"\n".join(str(row[0]).encode() for row in rows)
    engine.dispose()


def sample(url: str) -> None:
    """Let the planner take its samples; they hold the canary."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("ANALYZE"))
    engine.dispose()
    (samples,) = (data for name, data in tables(url) if name == "pg_catalog.pg_statistic")
    assert heard(samples, [ID])


def consent(answer: str) -> str:
    reason = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "TREATDS"}
    scope = {"system": "http://terminology.hl7.org/CodeSystem/consentscope",
             "code": "patient-privacy"}  # fmt: skip
    return json.dumps({
        "resourceType": "Consent", "status": "active", "id": "canary",
        "scope": {"coding": [scope]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"display": NAME}, "dateTime": "2026-01-01",
        "policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-basic-normal"}],
        "provision": {"type": answer, "purpose": [reason]},
    })  # fmt: skip


def typed(ward: w.Ward, said: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Type a command that reads a patient from standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *map(str, words), "--site", str(ward.folder)],
        input=said, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def wait(ward: w.Ward, study_uid: str, state: str) -> None:
    until = time.monotonic() + 90
    while ward.states().get(study_uid) != state:
        assert time.monotonic() < until, f"{ward.states()}\n{ward.last_words()}"
        time.sleep(0.3)


class Day:
    """The canary's day at a site, up to the moment before it is erased."""

    def __init__(self, ward: w.Ward, pacs: w.PACS, place: Path) -> None:
        self.ward, self.place = ward, place
        self.release = threading.Event()
        self.permit = place / "permit.json"
        self.permit.write_text(consent("permit"))
        typed(ward, f"SOAK|{ID}\n", "consent", "add", self.permit, "--patient", "-")
        ward.serve()
        soon = time.monotonic() + 60
        w.insist(BEFORE, ward.port, until=soon)
        w.insist(w.study(1), ward.port, until=soon)
        wait(ward, uid(BEFORE), "delivered")
        wait(ward, uid(w.study(1)), "delivered")
        hanging = set(pacs.received)
        pacs.answer = lambda sop: 0x0000 if sop in hanging else self._hang()
        pacs.arriving.clear()
        w.insist(SENDING, ward.port, until=soon)
        assert pacs.arriving.wait(60)
        w.insist(INBOX, ward.port, until=soon)

    def _hang(self) -> int | None:
        """A PACS that takes its time, then takes it."""
        self.release.wait(60)
        return 0x0000


def story(
    ward: w.Ward, pacs: w.PACS, place: Path, before: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Erase the canary while all this is under way; returns what the confirmation told.

    `before` is called when everything is there.
    """
    day = Day(ward, pacs, place)
    before()
    asked = typed(ward, f"SOAK|{ID}\n", "erase", "-", "--by", "dr-a")
    request = asked.stdout.strip()
    assert not heard((asked.stdout + asked.stderr).encode(), [*canaries()[:6]])
    assert "left before" in asked.stderr
    ward.radseal("erase", "--confirm", request, "--by", "dr-a", code=1)
    assert ward.why(uid(BEFORE))["routes"]
    threading.Timer(3.0, day.release.set).start()
    told = json.loads(ward.radseal("erase", "--confirm", request, "--by", "dr-b", "--json"))
    assert told["state"] == "done"
    return dict(told)


def judge(ward: w.Ward, told: dict[str, Any]) -> None:
    """What must be true of the site right after it, and while its service goes on."""
    assert singing(ward.folder) == {}
    assert told["report"]["studies"] in {2, 3}  # the third may not have been indexed yet
    assert told["report"]["images"] == 9
    gone = {one["sop_instance_uid"] for one in told["report"]["left"]}
    assert len(gone) >= w.KINDS
    assert set(ward.states()) == {uid(w.study(1))}
    assert ward.ready()


def afterwards(ward: w.Ward, pacs: w.PACS, place: Path) -> None:
    """The same patient's next study is denied, and says why, until there is consent."""
    soon = time.monotonic() + 60
    pacs.answer = lambda _uid: 0x0000
    w.insist(w.study(2), ward.port, until=soon)
    w.insist(AFTER, ward.port, until=soon)
    wait(ward, uid(w.study(2)), "delivered")
    wait(ward, uid(AFTER), "denied")
    assert "the patient's data was erased" in ward.radseal("why", uid(AFTER))
    typed(ward, f"SOAK|{ID}\n", "consent", "add", place / "permit.json", "--patient", "-")
    w.insist(LIFTED, ward.port, until=time.monotonic() + 60)
    wait(ward, uid(LIFTED), "delivered")
    assert ward.stop() == 0
    keys = read_vkeys((ward.folder / "ledger.vkey").read_text(encoding="utf-8"))
    report = verify_log(ward.folder / "ledger", keys)
    assert report.counts["subject.erased"] == 1
    done = subprocess.run(
        [sys.executable, "-m", "ledger", "verify", str(ward.folder / "ledger"), "--vkey",
         str(ward.folder / "ledger.vkey")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1][:2]) == (0, "OK"), done.stdout
    assert "Traceback" not in ward.log.read_text(errors="replace")


def test_a_canary_is_erased_from_a_house_at_work(tmp_path: Path) -> None:
    pacs = w.PACS()
    pacs.up()
    try:
        with w.ward(tmp_path, [pacs]) as ward:
            told = story(ward, pacs, tmp_path)
            judge(ward, told)
            time.sleep(1.0)  # the service writes on: nothing comes back
            assert singing(ward.folder) == {}
            ward.kill()
            assert singing(ward.folder) == {}
            ward.serve()
            assert singing(ward.folder) == {}
            afterwards(ward, pacs, tmp_path)
    finally:
        pacs.down()


@pytest.mark.peer
def test_on_postgresql_no_row_and_no_sample_is_left(tmp_path: Path, database_url: str) -> None:
    pacs = w.PACS()
    pacs.up()
    try:
        with w.ward(tmp_path, [pacs], database_url=database_url) as ward:
            told = story(ward, pacs, tmp_path, lambda: sample(database_url))
            judge(ward, told)
            found = {name: names for name, data in tables(database_url)
                     if (names := heard(data, canaries()))}  # fmt: skip
            assert found == {}
            afterwards(ward, pacs, tmp_path)
            found = {name for name, data in tables(database_url) if heard(data, [ID])}
            assert "public.studies" in found  # the search does find a patient who is there
    finally:
        pacs.down()


def test_what_was_confirmed_is_finished_by_the_service_when_the_command_is_killed(
    tmp_path: Path,
) -> None:
    pacs = w.PACS()
    pacs.up()
    try:
        with w.ward(tmp_path, [pacs]) as ward:
            ward.serve()
            w.insist(BEFORE, ward.port, until=time.monotonic() + 60)
            wait(ward, uid(BEFORE), "delivered")
            request = typed(ward, f"SOAK|{ID}\n", "erase", "-", "--by", "dr-a").stdout.strip()
            (row,) = rows(ward, "studies")
            with Turns(ward.folder / ".locks").share(row.id):  # as a step of a worker does
                command = subprocess.Popen(
                    [sys.executable, "-m", "bridge", "erase", "--confirm", request,
                     "--by", "dr-b", "--site", str(ward.folder)]
                )  # fmt: skip
                servers.wait_until(
                    lambda: rows(ward, "erasures")[0].state == "confirmed", seconds=60,
                    what="the confirmation",
                )  # fmt: skip
                command.kill()
                command.wait()
                assert singing(ward.folder)
            servers.wait_until(
                lambda: rows(ward, "erasures")[0].state == "done", seconds=60, what="the erasure"
            )
            assert singing(ward.folder) == {}
            assert ward.ready()
            assert ward.stop() == 0
            assert ward.verify().counts["subject.erased"] == 1
    finally:
        pacs.down()


def rows(ward: w.Ward, table: str) -> list[Any]:
    engine = open_engine(ward.settings.database_url)
    with reading(engine) as connection:
        found = list(connection.execute(sa.select(METADATA.tables[table])))
    engine.dispose()
    return found
