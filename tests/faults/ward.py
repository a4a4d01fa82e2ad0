"""For rough treatment: tiny studies, a PACS that counts, a sender that insists, a service to kill.

A model of one comparison, three slices of 32² pixels: a study takes as little as the house
allows, so that many of them, and many crashes, fit into a test. Everything goes through the
DICOM port; what the PACS saw and what the sender heard is the truth that the house is held to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import servers
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification

from bridge import site
from bridge.engine import EngineClient
from bridge.home import create, open_rooms, publish
from bridge.rooms import Rooms
from bridge.store.database import open_engine, reading
from bridge.store.tables import generations, instances, studies
from ledger.verify import Report, read_vkeys, verify_log
from models import signature

MODEL, ORIGIN, MODALITY = "test.bright", "soak.radseal.example/log", "MODALITY"
KINDS = 3  # SEG, SR, summary
_VOLUME = {"value": "118565006", "scheme": "SCT", "meaning": "Volume"}


# --- a model and its package -------------------------------------------------------------------


def _graph() -> bytes:
    shape = ["n", 1, "h", "w"]
    nodes = [
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.float32(100))),
        helper.make_node("Greater", ["x", "t"], ["b"]),
        helper.make_node("Cast", ["b"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, shape)],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def _manifest(digest: str) -> dict[str, Any]:
    tensor = {"type": "image", "format": "x", "num_channels": 1, "spatial_shape": ["*", "*"]}
    return {
        "version": "1.0.0", "task": "t", "description": "d", "authors": "a", "copyright": "c",
        "intended_use": "testing",
        "network_data_format": {
            "inputs": {"x": {**tensor, "dtype": "float32", "modality": "CT"}},
            "outputs": {"mask": {**tensor, "dtype": "uint8"}},
        },
        "deployment": {
            "manifest_version": 1,
            "identity": {"id": MODEL, "name": "Bright", "vendor": "test",
                         "license": "CC0-1.0", "model_sha256": digest},
            "regulatory": {"status": "research-only"},
            "input": {
                "series": [{"role": "image", "selections": [
                    {"name": "ct", "conditions": {"Modality": "CT"}}]}],
                "sop_classes": [str(CTImageStorage)],
            },
            "preprocess": [{"op": "Rescale", "to": "HU"}],
            "layout": "NCHW", "batch_axis": "slices",
            "outputs": [{"tensor": "mask", "kind": "segmentation", "decode": "none",
                         "labels": [{"index": 1, "label": "Bright"}],
                         "measurements": [{"what": _VOLUME, "unit": {
                             "value": "mL", "scheme": "UCUM", "meaning": "milliliter"},
                             "per": "label"}]}],
            "selftest": {"layout": "onnx test_data_set", "atol": 0, "rtol": 0},
            "execution": {"providers": ["CPUExecutionProvider"], "intra_threads": 1,
                          "max_batch": 8, "timeout_s": 60, "memory_mb": 1024},
        },
    }  # fmt: skip


def package(root: Path) -> tuple[Path, bytes]:
    """Write a signed package; returns its folder and the vendor's public key (PEM)."""
    tests = root / "selftest" / "test_data_set_0"
    for folder in (root / "configs", root / "models", root / "docs", tests):
        folder.mkdir(parents=True)
    data = _graph()
    (root / "models/model.onnx").write_bytes(data)
    manifest = _manifest(hashlib.sha256(data).hexdigest())
    (root / "configs/metadata.json").write_text(json.dumps(manifest), encoding="utf-8")
    x = np.array([[[[0, 200], [50, 101]]]], np.float32)
    for name, place, value in (("x", "input", x), ("mask", "output", (x > 100).astype(np.uint8))):
        proto = numpy_helper.from_array(value, name)
        (tests / f"{place}_0.pb").write_bytes(proto.SerializeToString())
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    signature.sign(root, private, Path(f"{root}.sig"))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return root, public


# --- studies and those who send and keep them --------------------------------------------------


def study(number: int, *, slices: int = 3) -> list[Dataset]:
    """Make a tiny CT study; equal numbers give equal bytes."""
    random = np.random.default_rng(number)
    base = f"2.25.{10**20 + number}"
    return [_slice(base, number, index, random) for index in range(slices)]


def _slice(base: str, number: int, index: int, random: np.random.Generator) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{base}.1.{index + 1}"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20260102", "101112", f"A{number}"
    ds.Modality, ds.Manufacturer, ds.ReferringPhysicianName = "CT", "Tiny", ""
    ds.StudyDescription, ds.SeriesDescription = "Soak", "Tiny"
    ds.PatientName, ds.PatientID = f"Canary^{number}", f"P{number:05d}"
    ds.PatientBirthDate, ds.PatientSex = "19600101", "O"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = base, f"{base}.1"
    ds.FrameOfReferenceUID, ds.StudyID = f"{base}.2", str(number)
    ds.SeriesNumber, ds.InstanceNumber = 1, index + 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [0.0, 0.0, 3.0 * index]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [1.0, 1.0], 3
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.Rows = ds.Columns = 32
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = random.integers(0, 4096, (32, 32), dtype=np.uint16).astype("<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


class PACS:
    """A C-STORE SCP that counts: which objects came, how often, with which bytes.

    `answer(uid)` gives the status for an object, or None to break the association. It can go
    `down` and come `up` again on the same port.
    """

    def __init__(self, ae_title: str = "PACS", port: int | None = None) -> None:
        self.ae_title, self.port = ae_title, port or servers.free_port()
        self.received: dict[str, list[str]] = {}
        self.when: dict[str, float] = {}
        self.of_study: dict[str, set[str]] = {}
        self.answer: Callable[[str], int | None] = lambda _uid: 0x0000
        self.arriving = threading.Event()
        self._lock = threading.Lock()
        self._server: Any = None

    def up(self) -> None:
        """Listen."""
        ae = AE(ae_title=self.ae_title)
        ae.supported_contexts = [
            build_context(context.abstract_syntax, [ExplicitVRLittleEndian])
            for context in AllStoragePresentationContexts
        ]
        ae.add_supported_context(Verification)
        self._server = ae.start_server(
            (servers.HOST, self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)]
        )

    def down(self) -> None:
        """Stop listening and drop who is connected."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def of(self, uid: str) -> set[str]:
        """Return the SOPInstanceUIDs that came for a study."""
        with self._lock:
            return set(self.of_study.get(uid, ()))

    def _keep(self, event: Any) -> int:
        uid, data = str(event.request.AffectedSOPInstanceUID), event.encoded_dataset()
        self.arriving.set()
        status = self.answer(uid)
        if status is None:
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
            return 0xC000
        if status == 0x0000:
            found = dcmread(BytesIO(data), specific_tags=["StudyInstanceUID"])
            with self._lock:
                # Group 0002 is the association's matter; what counts is the dataset.
                self.received.setdefault(uid, []).append(dataset_digest(data))
                self.when.setdefault(uid, time.monotonic())
                self.of_study.setdefault(str(found.StudyInstanceUID), set()).add(uid)
        return status


def dataset_digest(file: bytes) -> str:
    """SHA-256 of a DICOM file's dataset, without preamble and group 0002."""
    length = int.from_bytes(file[140:144], "little")
    return hashlib.sha256(file[144 + length :]).hexdigest()


def sent_digest(dataset: Dataset) -> str:
    """SHA-256 of a dataset as it is sent in explicit VR little endian."""
    data = encode(dataset, False, True)
    if data is None:
        raise ValueError("the dataset cannot be encoded")
    return hashlib.sha256(data).hexdigest()


def insist(
    datasets: Sequence[Dataset], port: int, *, called: str = "RADSEAL", until: float
) -> dict[str, str]:
    """Send as a modality does: again and again until each image was answered with Success.

    Returns {SOPInstanceUID: digest} of what was acknowledged; raises TimeoutError at `until`
    (monotonic).
    """
    left = list(datasets)
    acknowledged: dict[str, str] = {}
    ae = AE(ae_title=MODALITY)
    ae.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.connection_timeout = 5
    while left:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(left)} images were not taken in time")
        association = ae.associate(servers.HOST, port, ae_title=called)
        while left and association.is_established:
            try:
                status = association.send_c_store(left[0])
            except (RuntimeError, ValueError):
                break
            if not status or status.Status != 0x0000:
                break
            first = left.pop(0)
            acknowledged[str(first.SOPInstanceUID)] = sent_digest(first)
        if association.is_established:
            association.release()
        if left:
            time.sleep(0.3)
    return acknowledged


# --- a site and its processes ------------------------------------------------------------------


@dataclass
class Ward:
    """A site with the tiny model in routing, and the processes that serve it."""

    folder: Path
    port: int
    http_port: int
    log: Path
    errors: str = ""
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> site.Site:
        """The site's settings as they are on disk now."""
        return site.read(self.folder)

    def serve(self, *, wait: bool = True, **popen: Any) -> None:
        """Start `radseal serve`; `wait` until it is ready."""
        self._start("serve", **popen)
        if wait:
            self.wait_ready()

    def worker(self) -> None:
        """Start `radseal worker`."""
        self._start("worker")

    def _start(self, what: str, **popen: Any) -> None:
        with self.log.open("ab") as out:
            self._running[what] = subprocess.Popen(
                [sys.executable, "-m", "bridge", what, "--site", str(self.folder)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **popen,
            )  # fmt: skip

    def alive(self, what: str = "serve") -> bool:
        """Whether this process runs."""
        return what in self._running and self._running[what].poll() is None

    def pid(self, what: str = "serve") -> int:
        """Process id."""
        return self._running[what].pid

    def ready(self) -> bool:
        """Whether the service says that it is ready."""
        return servers.http_ok(f"http://{servers.HOST}:{self.http_port}/health/ready")

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait for it; raises AssertionError with the last lines of the log."""
        until = time.monotonic() + seconds
        while not self.ready():
            if not self.alive() or time.monotonic() > until:
                raise AssertionError(f"the service is not ready\n{self.last_words()}")
            time.sleep(0.1)

    def kill(self, what: str = "serve", *, group: bool = True) -> None:
        """Kill -9 a process, and its listener with it unless `group` is False."""
        process = self._running.pop(what, None)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()

    def stop(self, what: str = "serve") -> int:
        """End a process in order (SIGTERM); returns its status."""
        process = self._running.pop(what)
        process.terminate()
        try:
            return process.wait(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing running."""
        for what in list(self._running):
            self.kill(what)

    def radseal(self, *words: object, code: int = 0) -> str:
        """Run a command on this site; returns what it printed, checks its status."""
        done = subprocess.run(
            [sys.executable, "-m", "bridge", *map(str, words), "--site", str(self.folder)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        self.errors = done.stderr
        if done.returncode != code:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def why(self, uid: str) -> dict[str, Any]:
        """Return `radseal why --json`."""
        return dict(json.loads(self.radseal("why", uid, "--json")))

    def states(self) -> dict[str, str]:
        """Return {StudyInstanceUID: state} of the studies whose newest generation is closed.

        An open one is told as "open: …".
        """
        engine = open_engine(self.settings.database_url)
        asked = studies.join(
            generations,
            (generations.c.study_id == studies.c.id)
            & (generations.c.generation == studies.c.generation),
            isouter=True,
        ).select()
        try:
            with reading(engine) as connection:
                rows = connection.execute(asked).all()
        finally:
            engine.dispose()
        return {
            row.study_instance_uid: row.state if row.closed_at else f"open: {row.state_words}"
            for row in rows
        }

    def held(self) -> dict[str, list[str]]:
        """Return {SOPInstanceUID: [digest of the file's dataset, …]} of the images that count."""
        files = {path.stem: path for path in (self.folder / "instances").rglob("*.dcm")}
        engine = open_engine(self.settings.database_url)
        try:
            with reading(engine) as connection:
                rows = connection.execute(
                    instances.select().where(instances.c.state == "held")
                ).all()
        finally:
            engine.dispose()
        found: dict[str, list[str]] = {}
        for row in rows:
            digest = dataset_digest(files[row.arrival].read_bytes())
            found.setdefault(row.sop_instance_uid, []).append(digest)
        return found

    def artifacts(self) -> dict[str, str]:
        """Return {SOPInstanceUID: digest of the stored dataset} of everything composed."""
        found = {}
        for path in sorted((self.folder / "artifacts").rglob("*.dcm")):  # HASH.sent.dcm is sent
            data = path.read_bytes()
            uid = str(dcmread(BytesIO(data), stop_before_pixels=True).SOPInstanceUID)
            found[uid] = dataset_digest(data)
        return found

    def verify(self) -> Report:
        """Verify the published log with the site's keys; raises VerifyError."""
        keys = read_vkeys((self.folder / "ledger.vkey").read_text(encoding="utf-8"))
        return verify_log(self.folder / "ledger", keys)

    def quiet_log(self) -> bool:
        """Whether the processes said no traceback and no patient's name, whatever happened."""
        text = self.log.read_text(errors="replace")
        return "Traceback" not in text and "Canary" not in text

    def last_words(self, lines: int = 40) -> str:
        """Return the last lines of the processes' log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _toml(head: str, values: Mapping[str, object]) -> str:
    return "\n".join([head, *(f"{k} = {json.dumps(v)}" for k, v in values.items()), ""])


def supply(rooms: Rooms, folder: Path) -> None:
    """Be vendor and department: the tiny model is trusted, registered, approved, activated."""
    now = datetime.now(UTC)
    root, public = package(folder)
    rooms.registrar.trust(public, "test", now)
    rooms.registrar.push(root, now, by="vendor", progress=lambda _what: None)
    rooms.lifecycle.act(MODEL, "approve", now, by="dr-approver")
    rooms.lifecycle.act(MODEL, "activate", now, by="dr-approver")
    publish(rooms)


@contextlib.contextmanager
def ward(
    place: Path,
    destinations: Sequence[PACS],
    *,
    database_url: str | None = None,
    quiet_seconds: float = 0.5,
    watermark_mb: int = 0,
    site_folder: Path | None = None,
) -> Iterator[Ward]:
    """Make a site under `place` that delivers to these, supply it, and end its processes."""
    folder = site_folder or place / "site"
    made = Ward(folder, servers.free_port(), servers.free_port(), place / "processes.log")
    create(folder, "Soak", ORIGIN)
    text = [f'name = "Soak"\norigin = "{ORIGIN}"']
    tables: dict[str, Mapping[str, object]] = {
        "[listener]": {"host": servers.HOST, "port": made.port},
        "[http]": {"port": made.http_port},
        "[completion]": {"quiet_seconds": quiet_seconds},
        "[storage]": {"watermark_mb": watermark_mb},
        "[patients]": {"issuer": "SOAK"},
        "[[sources]]": {"name": "modality", "ae_title": MODALITY},
    }
    if database_url is not None:
        tables["[database]"] = {"url": database_url}
    text += [_toml(head, values) for head, values in tables.items()]
    text += [
        _toml("[[destinations]]", {
            "name": pacs.ae_title.lower(), "ae_title": pacs.ae_title, "host": servers.HOST,
            "port": pacs.port,
        })
        for pacs in destinations
    ]  # fmt: skip
    (folder / "site.toml").write_text("\n".join(text), encoding="utf-8")
    made.log.touch()
    with EngineClient(made.settings.database_url) as counter:
        rooms = open_rooms(made.settings, counter, prepare=True)
        supply(rooms, place / "package")
        rooms.database.dispose()
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(place / "package", ignore_errors=True)
