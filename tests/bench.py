"""A workbench: a real site in a folder, whose stages a test calls one by one.

Nothing runs in the background: real SQLite, real ledger, real vault, real child processes for
models, a clock that the test moves. Received files are laid into the inbox as the listener does.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import sqlalchemy
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import numpy_helper
from pydicom import DataElement, Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification
from sqlalchemy import select

from bridge import ambient, close, compose, deliver, follow, grant, infer, site
from bridge.consent.document import parse
from bridge.demo import phantom
from bridge.engine import EngineClient
from bridge.files import arrival_name
from bridge.home import create, open_rooms, publish
from bridge.indexing import ATTRIBUTES, readable
from bridge.receive import Indexer
from bridge.report.identity import derived_uid
from bridge.store import arrivals, story, tables
from bridge.store.database import reading
from ledger.tiles import unpack
from ledger.verify import read_vkeys, verify_log
from models import admission, decode, sandbox, signature
from models.errors import RunFailed

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
ORIGIN = "test.example.org/log"
MODEL = "test.threshold"
ANNA = phantom.Patient(name="Alpha^Anna", id="A-1", issuer="GH")
BERT = phantom.Patient(name="Beta^Bert", id="B-2", issuer="GH")
NOBODY = phantom.Patient(name="", id="", issuer="")

_spec = importlib.util.spec_from_file_location(
    "tiny_packages", Path(__file__).parent / "unit" / "models" / "conftest.py"
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


class HandClock:
    """A steady clock that only a test moves."""

    def __init__(self, started: datetime = NOW) -> None:
        self.started = started
        self.time = started

    def steady(self) -> datetime:
        return self.time

    def pass_(self, seconds: float) -> datetime:
        self.time += timedelta(seconds=seconds)
        return self.time


def images(
    count: int = 4,
    *,
    study: str = "study",
    series: str = "series",
    patient: phantom.Patient = ANNA,
    seed: int = 0,
    size: int = 16,
    **tags: Any,
) -> list[Dataset]:
    """CT images of a bright square in the dark; `tags` replace attributes of each."""
    hu = np.full((count, size, size), -500, np.int16)
    hu[:, 4:12, 4:12] = 400 + seed
    volume = phantom.Phantom(hu, np.zeros_like(hu, np.uint8), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), 1)

    def uid(*parts: str) -> str:
        return derived_uid("bench", *([study] if parts == ("study",) else [study, series, *parts]))

    made = phantom.to_datasets(volume, uid=uid, now=NOW, patient=patient, accession="ACC-1")
    for dataset in made:
        for keyword, value in tags.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return made


def changed(dataset: Dataset, **tags: Any) -> Dataset:
    """A copy with other header values."""
    other = copy.deepcopy(dataset)
    for keyword, value in tags.items():
        setattr(other, keyword, value)
    return other


def write_package(root: Path, change: dict[str, Any] | None = None, model: Any = None) -> Path:
    """A small signed-to-be package: everything above 100 HU is "Bright"."""
    for folder in ("configs", "models", "docs", "selftest/test_data_set_0"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    data = (tiny.threshold_graph() if model is None else model).SerializeToString()
    (root / "models/model.onnx").write_bytes(data)
    manifest = tiny.merge(tiny.manifest_of(hashlib.sha256(data).hexdigest()), change or {})
    (root / "configs/metadata.json").write_text(json.dumps(manifest))
    x = np.array([[[[0, 200], [50, 101]]]], np.float32)
    for kind, name, value in (("input", "x", x), ("output", "mask", (x > 100).astype(np.uint8))):
        proto = numpy_helper.from_array(value, name)
        (root / f"selftest/test_data_set_0/{kind}_0.pb").write_bytes(proto.SerializeToString())
    return root


def _same_pixels_here(held: Path, new: Path) -> bool | None:
    """As bridge.indexing.same_pixels, without the child process that makes it slow."""
    try:
        first, second = (decode.read_header(path) for path in (held, new))
        if not decode.has_pixels(first) and not decode.has_pixels(second):
            return True
        digests = {decode.pixel_sha256(decode.decode(one)[0]) for one in (first, second)}
    except RunFailed:
        return None
    return len(digests) == 1


class Vendor:
    """A vendor with a key of its own."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, root: Path) -> None:
        signature.sign(root, self.private, Path(f"{root}.sig"))


@contextmanager
def copies(
    source: Path, target: Path, committed: Callable[..., None], number: int = 0
) -> Iterator[Callable[[], Bench]]:
    """Give the site of `source` again and again, each time as it was; one is open at a time.

    `committed` is called at each commit of its tables.
    """
    opened: list[Bench] = []

    def copy_() -> Bench:
        while opened:
            opened.pop().close()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        desk = Bench.at(target, number)
        sqlalchemy.event.listen(desk.rooms.database, "commit", committed)
        opened.append(desk)
        return desk

    yield copy_
    for desk in opened:
        desk.close()


class Bench:
    """A site and the hands that move it."""

    def __init__(self, folder: Path, toml: str = "") -> None:
        self.base = folder
        created = create(folder / "site", "Test Hospital", ORIGIN)
        (created.folder / "site.toml").write_text(
            f'name = "Test Hospital"\norigin = "{ORIGIN}"\n'
            '[patients]\nissuer = "GH"\nissuer_system = "urn:oid:1.2.3"\n' + toml,
            encoding="utf-8",
        )
        self.settings = site.read(created.folder)
        self.clock = HandClock()
        self.work = EngineClient(self.settings.database_url)
        self.rooms = replace(open_rooms(self.settings, self.work, prepare=True), clock=self.clock)
        self.vendor = Vendor()
        self.opened: list[tuple[str, int]] = []
        self.indexer = self._indexer()
        self._number = 0

    @classmethod
    def at(cls, folder: Path, number: int = 0) -> Bench:
        """A bench at a site that is there already; `number` objects were laid before."""
        desk = cls.__new__(cls)
        desk.base, desk.clock = folder, HandClock()
        desk.reopen(folder / "site")
        desk.opened, desk.indexer, desk._number = [], desk._indexer(), number
        return desk

    def reopen(self, folder: Path) -> None:
        """Open the site in this folder, as after a restart; the bench must be closed."""
        self.settings = site.read(folder)
        self.work = EngineClient(self.settings.database_url)
        self.rooms = replace(open_rooms(self.settings, self.work), clock=self.clock)

    def _indexer(self) -> Indexer:
        def opened(_connection: Any, study_id: str, generation: int) -> None:
            self.opened.append((study_id, generation))

        return Indexer(
            engine=self.rooms.database, files=self.rooms.files, keywords=ATTRIBUTES,
            issuer_of=self.settings.issuer_of, same_pixels=_same_pixels_here,
            subject_of=self.rooms.subject, opened=opened,
            readable=lambda sop_class: readable(self.rooms, sop_class), new_id=ambient.new_id,
        )  # fmt: skip

    def close(self) -> None:
        self.work.close()
        self.rooms.vault.close()
        self.rooms.record.log.store.close()
        self.rooms.database.dispose()

    # The modality.

    def lay(self, *objects: Dataset | bytes, ae: str = "CT1") -> list[Path]:
        """Lay acknowledged objects into the inbox."""
        laid = []
        for one in objects:
            self._number += 1
            path = self.rooms.files.inbox / f"{arrival_name(self._number, 1, self._number, ae)}.dcm"
            if isinstance(one, bytes):
                path.write_bytes(one)
            else:
                one.save_as(path, enforce_file_format=True)
            laid.append(path)
        return laid

    def receive(self, *objects: Dataset | bytes, ae: str = "CT1") -> None:
        """Lay objects into the inbox and index them all."""
        self.lay(*objects, ae=ae)
        while self.indexer.index(self.clock.steady()):
            pass

    # The vendor and the department.

    def package(
        self, change: dict[str, Any] | None = None, *, name: str = "pkg", model: Any = None
    ):
        """Write and sign a package and trust its vendor; returns its folder."""
        root = write_package(self.base / name, change, model)
        self.vendor.sign(root)
        said = json.loads((root / "configs/metadata.json").read_text())["deployment"]["identity"]
        self.rooms.registrar.trust(self.vendor.public, said["vendor"], ambient.now())
        return root

    def push(self, root: Path, *, by: str = "vendor"):
        """Register a package; admission and self-test run here, not in a child."""
        with (
            mock.patch.object(sandbox, "admit", lambda package, _limits: admission.check(package)),
            mock.patch.object(sandbox, "selftest", return_value=sandbox.SelfTest(True, "")),
        ):
            return self.rooms.registrar.push(
                root, ambient.now(), by=by, progress=lambda _what: None
            )

    def model(self, change: dict[str, Any] | None = None, *, name: str = "pkg", model: Any = None):
        """Write, sign, trust, push, approve and activate a package; returns its row."""
        row, at = self.push(self.package(change, name=name, model=model)), ambient.now()
        self.rooms.lifecycle.act(f"{row.id}@{row.version}", "approve", at, by="approver")
        return self.rooms.lifecycle.act(f"{row.id}@{row.version}", "activate", at, by="approver")

    # The stages, in the order of bridge/pipeline.py.

    def look(self, uid: str) -> float:
        study = self.study(uid)
        return follow.look(self.rooms, study.id, study.generation)

    def seal(self, uid: str) -> list[str]:
        """Let a quiet period pass; returns the routes that the newest generation opened."""
        self.clock.pass_(self.settings.completion.quiet_seconds)
        assert self.look(uid) == 0
        study = self.study(uid)
        rows = [r for r in self.rows("routes") if r.study_id == study.id]
        return [r.id for r in rows if r.generation == study.generation]

    def run(self, route_id: str, attempt: int = 1) -> str | None:
        """Take a route from its input to its run; None where it was not run."""
        if infer.seal(self.rooms, route_id) != infer.SEALED:
            return None
        if not infer.permitted(self.rooms, route_id):
            return None
        return infer.run(self.rooms, route_id, attempt)

    def report(self, run_id: str) -> list[str]:
        """Compose, publish, open deliveries; returns the destinations."""
        compose.compose(self.rooms, run_id)
        publish(self.rooms)
        return deliver.open_deliveries(self.rooms, run_id)

    def walk(self, uid: str) -> list[str]:
        """All stages for what is held, every delivery tried once; returns the runs."""
        runs = []
        for route_id in self.seal(uid):
            run_id = self.run(route_id)
            if run_id is not None:
                runs.append(run_id)
                for destination in self.report(run_id):
                    deliver.send(self.rooms, run_id, destination, 0)
        self.finish(uid)
        return runs

    def finish(self, uid: str) -> None:
        study = self.study(uid)
        close.finish(self.rooms, study.id, study.generation)

    def verify(self):
        """The log as its verifier sees it; raises VerifyError."""
        publish(self.rooms)
        folder = self.settings.folder
        return verify_log(folder / "ledger", read_vkeys((folder / "ledger.vkey").read_text()))

    # Looking.

    def study(self, uid: str) -> arrivals.StudyRow:
        with reading(self.rooms.database) as connection:
            return arrivals.study(connection, story.find(connection, uid))

    def story(self, uid: str):
        with reading(self.rooms.database) as connection:
            return story.story(connection, story.find(connection, uid))

    def generation(self, uid: str) -> arrivals.GenerationRow:
        study = self.study(uid)
        with reading(self.rooms.database) as connection:
            return arrivals.generation(connection, study.id, study.generation)

    def rows(self, table: str) -> list[Any]:
        with reading(self.rooms.database) as connection:
            return list(connection.execute(select(tables.METADATA.tables[table])))

    def states(self) -> dict[str, int]:
        """How many received instances are in which state."""
        found: dict[str, int] = {}
        for row in self.rows("instances"):
            found[row.state] = found.get(row.state, 0) + 1
        return found

    def codes(self, uid: str) -> list[str]:
        return [line.code for line in self.story(uid).lines]

    def leaves(self) -> list[dict[str, Any]]:
        """Every leaf of the log, in order, after publishing what is pending."""
        publish(self.rooms)
        size = self.rooms.record.log.size()
        bundle = self.settings.folder / f"ledger/tile/entries/000.p/{size}"
        return [json.loads(entry) for entry in unpack(bundle.read_bytes(), size)]

    def artifact(self, row: Any) -> Dataset:
        return dcmread(self.settings.folder / row.file)

    def sent(self, row: Any) -> Path:
        """The file that leaves the house for this artifact."""
        return self.rooms.files.stamped(row.study_id, row.sop_instance_uid)


def every(datasets: Sequence[Dataset], **tags: Any) -> list[Dataset]:
    """Copies of all with other header values."""
    return [changed(one, **tags) for one in datasets]


ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"


def consent(
    answer: str,
    patient: phantom.Patient = ANNA,
    *,
    end: datetime | None = None,
    text: str = "",
    purpose: str = "TREATDS",
) -> bytes:
    """A FHIR Consent of a patient; `end` is when its provision ends, `text` tells it apart."""
    provision: dict[str, Any] = {
        "type": answer,
        "purpose": [{"system": ACT_REASON, "code": purpose}],
    }
    if end is not None:
        provision["period"] = {"end": end.isoformat(timespec="milliseconds")}
    return json.dumps({
        "resourceType": "Consent", "status": "active", "id": text or answer,
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope",
                              "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"identifier": {"system": "urn:oid:1.2.3", "value": patient.id}},
        "dateTime": "2026-01-01",
        "policy": [{"uri": "https://profiles.ihe.net/ITI/PCF/Policy-basic-normal"}],
        "provision": provision,
    }).encode()  # fmt: skip


def refuse(desk: Bench, patient: phantom.Patient = ANNA) -> str:
    """Keep a patient's refusal."""
    data = consent("deny", patient)
    return grant.keep(desk.rooms, data, parse(data), None, by="clerk")


class Kept:
    """A site as a bench left it; the tests of a module each open a copy, as if they had made it."""

    def __init__(self, desk: Bench) -> None:
        desk.close()
        self._desk = desk

    def copy(self, target: Path) -> Bench:
        """Give a bench at a copy in this folder."""
        shutil.copytree(self._desk.base, target, dirs_exist_ok=True)
        desk = Bench.at(target, self._desk._number)
        desk.vendor, desk.opened = self._desk.vendor, list(self._desk.opened)
        desk.clock.time = self._desk.clock.time
        return desk


class Archive:
    """A PACS that answers C-ECHO and C-FIND for counts, and takes C-STORE as it is told to.

    `series` is {SeriesInstanceUID: (count, modality)}; `status` what a C-STORE is answered with,
    per SOP class UID or for all ("*").
    """

    def __init__(self, ae_title: str = "PACS", *, takes: Sequence[str] | None = None) -> None:
        self.ae_title = ae_title
        self.series: dict[str, tuple[Any, str]] = {}
        self.find_status = 0x0000
        self.status: dict[str, int] = {}
        self.asked = 0
        self.before_answer: list[Any] = []
        self.received: list[Dataset] = []
        ae = AE(ae_title=ae_title)
        ae.add_supported_context(Verification)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        for context in AllStoragePresentationContexts:
            if takes is None or context.abstract_syntax in takes:
                ae.add_supported_context(context.abstract_syntax, [ExplicitVRLittleEndian])
                ae.supported_contexts[-1].add_transfer_syntax(ImplicitVRLittleEndian)
        self._server = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[(evt.EVT_C_FIND, self._find), (evt.EVT_C_STORE, self._store)],
        )
        self.port = int(self._server.server_address[1])

    def _find(self, _event: Any):
        self.asked += 1
        for act in self.before_answer:
            act()
        for uid, (count, modality) in self.series.items():
            found = Dataset()
            found.QueryRetrieveLevel = "SERIES"
            found.SeriesInstanceUID, found.Modality = uid, modality
            if isinstance(count, bytes):
                found.add(DataElement(0x00201209, "UN", count))
            elif count is not None:
                found.NumberOfSeriesRelatedInstances = count
            yield 0xFF00, found
        if self.find_status:
            yield self.find_status, None

    def _store(self, event: Any) -> int:
        sop_class = str(event.request.AffectedSOPClassUID)
        status = self.status.get(sop_class, self.status.get("*", 0x0000))
        if status == 0x0000:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.received.append(dataset)
        return status

    def uids(self) -> set[str]:
        return {str(one.SOPInstanceUID) for one in self.received}

    def toml(self, name: str = "pacs", *, destination: bool = True, **keys: Any) -> str:
        """Its table for site.toml, as a destination or as a source that can be asked."""
        said = {"name": name, "ae_title": self.ae_title, "host": "127.0.0.1", "port": self.port}
        said |= keys if destination else {"query": True, **keys}
        head = "[[destinations]]" if destination else "[[sources]]"
        return "\n".join([head, *(f"{k} = {json.dumps(v)}" for k, v in said.items())]) + "\n"

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
        self._server = None
