"""Hostile, broken and odd objects by C-STORE: each has a known end, and the house stands.

Every file of the corpus's folders goes over the wire as its raw bytes (tests/sender.py), under
UIDs of its own, to a site with a small model that reads any image. The table says what becomes
of each: read, not wanted, failed or in quarantine with a reason in words, or refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import house
import numpy as np
import pydicom
import pytest
import sender
import servers
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, numpy_helper

pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),  # these files deserve them
]

FOLDERS = ("malformed", "odd", "charset", "syntax", "objects", "multiframe", "selection")
IMAGES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.481.2",
)
ENDS: dict[tuple[str, str], str] = {
    ("delivered", "results stored at their destinations"): """
        malformed/derived/charset_unknown malformed/derived/hl7_injection_name
        malformed/derived/no_ipp malformed/derived/pixeldata_length_4g
        malformed/derived/same_uid_other_pixels_a
        malformed/derived/same_uid_other_pixels_b odd/examples_overlay odd/explicit_VR-UN
        odd/vlut_04 charset/chrArab charset/chrFren charset/chrFrenMulti charset/chrGerm
        charset/chrGreek charset/chrH31 charset/chrI2 charset/chrRuss charset/chrX1
        charset/latin2_polish charset/latin5_turkish charset/thai charset/utf8_multi
        syntax/CT_small syntax/MR_small syntax/MR_small_RLE syntax/MR_small_bigendian
        syntax/MR_small_expb syntax/MR_small_implicit syntax/MR_small_jp2klossless
        syntax/MR_small_jpeg_ls_lossless syntax/MR_small_padded syntax/examples_palette
        syntax/image_dfl syntax/wg04/CT1_J2KI syntax/wg04/CT1_J2KR syntax/wg04/CT1_JLSL
        syntax/wg04/CT1_JLSN syntax/wg04/CT1_JPLL syntax/wg04/CT1_RLE syntax/wg04/CT1_UNC
        multiframe/eCT_Supplemental multiframe/emri_small multiframe/emri_small_RLE
        multiframe/emri_small_big_endian multiframe/emri_small_jpeg_2k_lossless
        multiframe/emri_small_jpeg_ls_lossless selection/A046441_axial_19001111-045
        selection/A046441_axial_19010101-23 selection/A046441_coronal_19001111-056
        selection/A046441_coronal_19010101-43 selection/A046441_sagittal_19001111-059
        selection/A046441_sagittal_19010101-050
    """,
    ("failed", "NumberOfFrames is missing or not a number"): """
        malformed/badVR
    """,
    ("failed", "PixelSpacing is not positive"): """
        malformed/derived/pixel_spacing_0
    """,
    ("failed", "RescaleSlope is zero or not finite"): """
        malformed/derived/rescale_slope_0
    """,
    ("failed", "Rows, Columns, frames, samples or bits are not possible"): """
        malformed/derived/samples_per_pixel_0
    """,
    ("failed", "a modality lookup table is not supported"): """
        odd/mlut_18
    """,
    ("failed", "bytes of pixels are there: cut off, or Rows and Columns lie"): """
        malformed/MR_truncated malformed/derived/rows_cols_lie_60000
        malformed/derived/truncated_half_pixels
    """,
    ("failed", "no decoder could read the pixels"): """
        malformed/JPEG2000-embedded-sequence-delimiter malformed/derived/j2k_siz_65535
        syntax/JPEG-lossy syntax/JPGExtended
    """,
    ("failed", "no decoder knows this transfer syntax"): """
        malformed/derived/unknown_transfer_syntax
    """,
    ("failed", "the images have 3 channels, the model wants 1"): """
        odd/GDCMJ2K_TextGBR syntax/ExplVR_BigEnd syntax/SC_rgb_jpeg_dcmtk
        syntax/SC_rgb_rle_16bit_2frame syntax/SC_rgb_small_odd
        syntax/SC_ybr_full_422_uncompressed syntax/wg04/US1_J2KI syntax/wg04/US1_J2KR
        syntax/wg04/US1_RLE syntax/wg04/US1_UNC multiframe/us_30f_jpeg_baseline
    """,
    ("failed", "two images of the series lie at the same place"): """
        objects/rtdose
    """,
    ("quarantined", "SOPInstanceUID is missing, which every object must have"): """
        malformed/derived/no_sop_instance_uid malformed/derived/not_dicom
        malformed/meta_missing_tsyntax odd/UN_sequence odd/empty_charset_LEI
        odd/nested_priv_SQ odd/no_meta odd/no_meta_group_length odd/priv_SQ
        charset/chrSQEncoding
    """,
    ("quarantined", "SeriesInstanceUID is missing, which every object must have"): """
        syntax/HTJ2KLossless_08_RGB syntax/HTJ2K_08_RGB syntax/JPEGLSNearLossless_16
    """,
    ("quarantined", "SeriesInstanceUID is no UID"): """
        malformed/derived/path_traversal_uid
    """,
    ("quarantined", "the dataset is malformed: its sequences nest too deeply"): """
        malformed/derived/sequence_depth_400
    """,
    ("quarantined", "the object holds no dataset"): """
        malformed/derived/zero_bytes
    """,
    ("unwanted", "no active model wants this study"): """
        malformed/reportsi_with_empty_number_tags malformed/rtplan_truncated
        odd/ExplVR_BigEndNoMeta odd/ExplVR_LitEndNoMeta objects/qin_headneck_rwvm
        objects/qin_headneck_seg objects/qin_headneck_sr objects/reportsi objects/rtplan
        objects/rtstruct objects/seg_liver_of_ct_liver_3slice objects/seg_partial_overlaps
        objects/test-SR objects/waveform_ecg
    """,
}
MB_MORE = 60  # what the service may grow over all these objects, warmed up before


@dataclass(frozen=True)
class End:
    """What became of one object."""

    status: int
    state: str  # of the study, or of the instance where no study holds it
    words: str


def _bright() -> bytes:
    """A graph that says how bright each image is: [n, 1, rows, columns] to two probabilities."""
    constants = {"axes": np.array([1, 2, 3], np.int64), "scale": np.float32(1000)}
    constants |= {"shape": np.array([-1, 1], np.int64), "one": np.float32(1)}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))
        for name, value in constants.items()
    ]
    nodes += [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Div", ["mean", "scale"], ["small"]),
        helper.make_node("Sigmoid", ["small"], ["share"]),
        helper.make_node("Reshape", ["share", "shape"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes[1:],
        "bright",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "rows", "columns"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def _manifest(digest: str) -> dict[str, Any]:
    tensor = {"type": "image", "format": "x", "num_channels": 1, "spatial_shape": ["*", "*"]}
    labels = [
        {"index": 0, "label": "dark"},
        {
            "index": 1,
            "label": "bright",
            "finding": {"value": "BRIGHT", "scheme": "99RADSEAL", "meaning": "Bright image"},
        },
    ]
    return {
        "version": "1.0.0",
        "task": "says whether an image is bright",
        "description": "for tests",
        "authors": "tests",
        "copyright": "none",
        "intended_use": "testing",
        "network_data_format": {
            "inputs": {"x": {**tensor, "dtype": "float32"}},
            "outputs": {"scores": {"type": "probabilities", "format": "x", "dtype": "float32"}},
        },
        "deployment": {
            "manifest_version": 1,
            "identity": {
                "id": "test.bright",
                "name": "Bright",
                "vendor": "bad input tests",
                "license": "CC0-1.0",
                "model_sha256": digest,
            },
            "regulatory": {"status": "research-only"},
            "input": {
                "series": [
                    {"role": "image", "selections": [{"name": "anything", "conditions": {}}]}
                ],
                "sop_classes": list(IMAGES),
            },
            "preprocess": [],
            "layout": "NCHW",
            "batch_axis": "slices",
            "outputs": [{"tensor": "scores", "kind": "classification", "labels": labels}],
            "selftest": {"layout": "onnx test_data_set", "atol": 1e-6, "rtol": 1e-6},
            "execution": {
                "providers": ["CPUExecutionProvider"],
                "intra_threads": 1,
                "max_batch": 4,
                "timeout_s": 60,
                "memory_mb": 2048,
            },
        },
    }


def _package(folder: Path) -> tuple[Path, Path, Path]:
    """Write an unsigned package and a vendor's key pair; return package, private, public."""
    root = folder / "bright"
    for name in ("configs", "models", "docs", "selftest/test_data_set_0"):
        (root / name).mkdir(parents=True)
    data = _bright()
    (root / "models" / "model.onnx").write_bytes(data)
    manifest = _manifest(hashlib.sha256(data).hexdigest())
    (root / "configs" / "metadata.json").write_text(json.dumps(manifest))
    x = np.full((1, 1, 2, 2), 1000, np.float32)
    bright = 1 / (1 + np.exp(np.float32(-1)))
    scores = np.array([[1 - bright, bright]], np.float32)
    for kind, name, value in (("input", "x", x), ("output", "scores", scores)):
        proto = numpy_helper.from_array(value, name)
        path = root / "selftest" / "test_data_set_0" / f"{kind}_0.pb"
        path.write_bytes(proto.SerializeToString())
    key = ec.generate_private_key(ec.SECP256R1())
    pem, pub = folder / "vendor.pem", folder / "vendor.pub.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    pub.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return root, pem, pub


def _ends() -> Iterator[tuple[str, str, str]]:
    for (state, words), names in ENDS.items():
        for name in names.split():
            yield name, state, words


class Ward:
    """A site that takes whatever comes, and what became of each object sent to it."""

    def __init__(self, site: house.House, pacs: Any, corpus: Path) -> None:
        self.site, self.pacs, self.corpus = site, pacs, corpus
        self.ends: dict[str, tuple[int, str]] = {}  # name to status and the arrival's file name
        self._seen: set[str] = set()

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the site's tables as they are on the disk."""
        path = f"file:{self.site.folder / 'state.db'}?mode=ro"
        with closing(sqlite3.connect(path, uri=True)) as database:
            return database.execute(query, values).fetchall()

    def send(self, objects: list[sender.Raw]) -> list[int]:
        """C-STORE objects as they are; return their statuses when they are indexed."""
        made = sender.store(objects, self.site.port, calling=house.MODALITY, called=house.AE_TITLE)
        servers.wait_until(self.site.idle, what="indexing")
        return made

    def arrivals(self) -> list[str]:
        """Return what was indexed since this was asked last."""
        servers.wait_until(self.site.idle, what="indexing")
        found = [row[0] for row in self.rows("SELECT arrival FROM instances ORDER BY arrival")]
        new = [arrival for arrival in found if arrival not in self._seen]
        self._seen.update(new)
        return new

    def take(self, folder: str) -> None:
        """Send every file of a folder, one association each."""
        base = self.corpus / "dev"
        for path in sorted((base / folder).rglob("*.dcm")):
            name = str(path.relative_to(base).with_suffix(""))
            one, _ = sender.fresh(sender.raw(path), path, len(self.ends))
            (status,) = self.send([one])
            new = self.arrivals()
            assert len(new) == 1, (name, status, new)
            self.ends[name] = (status, new[0])

    def settle(self) -> None:
        """Wait until nothing is received or at work."""
        busy = "SELECT count(*) FROM studies WHERE state IN ('receiving', 'working')"
        servers.wait_until(lambda: self.rows(busy) == [(0,)], seconds=600, what="the last study")

    def end(self, name: str) -> End:
        """Return what became of a file."""
        status, arrival = self.ends[name]
        ((state, reason, study_id),) = self.rows(
            "SELECT state, reason, study_id FROM instances WHERE arrival = ?", arrival
        )
        if study_id is None:
            return End(status, state, reason)
        ((state, words),) = self.rows(
            "SELECT state, state_words FROM studies WHERE id = ?", study_id
        )
        return End(status, state, words)


@pytest.fixture(scope="module")
def ward(shared, enter, tmp_path_factory):
    """A site to which every object of the table was sent."""
    folder = tmp_path_factory.mktemp("ward")
    package, pem, public = _package(folder)
    signing = house.House(folder, 0, 0, folder / "none")
    signing.radseal("model", "sign", package, "--key", pem)
    pacs = enter(servers.storescp())
    site = enter(
        house.served(
            packages=[package],
            key=public,
            destinations=[house.destination("pacs", pacs.ae_title, pacs.port)],
            tables={"consent": {"unidentified": "permit"}},
            quiet_seconds=1,
            folder=folder / "house",
        )
    )
    made = Ward(site, pacs, shared / "corpus")
    made.take(FOLDERS[0])
    made.settle()
    before = site.memory_mb()
    for name in FOLDERS[1:]:
        made.take(name)
    made.settle()
    return SimpleNamespace(ward=made, site=site, before=before, after=site.memory_mb())


def test_the_table_names_every_file(shared):
    base = shared / "corpus" / "dev"
    found = {
        str(path.relative_to(base).with_suffix(""))
        for folder in FOLDERS
        for path in (base / folder).rglob("*.dcm")
    }
    assert sorted(name for name, _, _ in _ends()) == sorted(found)


@pytest.mark.parametrize(("name", "state", "words"), list(_ends()))
def test_each_object_has_its_end(ward, name, state, words):
    end = ward.ward.end(name)
    assert end.status == 0
    assert (end.state, words in end.words) == (state, True), end


def test_what_is_in_quarantine_is_listed_with_its_reason(ward):
    listed = {one["reason"]: one["instances"] for one in ward.site.quarantine()}
    for (state, words), names in ENDS.items():
        if state == "quarantined":
            assert listed[words] >= len(names.split()), words


def test_memory_stays_flat(ward):
    for process, mb in ward.after.items():
        assert mb - ward.before[process] < MB_MORE, process


def test_names_of_every_script_reach_the_pacs(ward):
    """The SR names the patient as the image did, however its letters were encoded."""
    reports = {}
    for path in ward.ward.pacs.files():
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        if dataset.Modality == "SR":
            reports[str(dataset.StudyInstanceUID)] = str(dataset.PatientName)
    seen = 0
    for name, _, _ in _ends():
        path = ward.ward.corpus / "dev" / f"{name}.dcm"
        (row,) = ward.ward.rows(
            "SELECT s.study_instance_uid, s.state FROM instances i LEFT JOIN studies s"
            " ON s.id = i.study_id WHERE i.arrival = ?", ward.ward.ends[name][1]
        )  # fmt: skip
        if not name.startswith("charset/") or row[1] != "delivered":
            continue
        source = pydicom.dcmread(path, stop_before_pixels=True)
        assert reports[row[0]].rstrip("=") == str(source.PatientName).rstrip("="), name
        seen += 1
    assert seen >= 12


def test_nothing_of_a_patient_is_in_the_log(ward):
    log = ward.site.log.read_text(errors="replace")
    for name, _, _ in _ends():
        try:
            dataset = pydicom.dcmread(
                ward.ward.corpus / "dev" / f"{name}.dcm", stop_before_pixels=True, force=True
            )
            said = [str(dataset.get("PatientName") or ""), str(dataset.get("PatientID") or "")]
        except Exception:  # noqa: BLE001, S112 - hostile files raise whatever they like
            continue
        for text in said:
            assert len(text) < 6 or text not in log, name


def test_no_name_from_outside_became_a_path(ward):
    wild = ward.ward.corpus / "dev" / "malformed" / "derived" / "path_traversal_uid.dcm"
    one = sender.raw(wild)
    ward.ward.send([replace(one, sop_uid="../../../../etc/cron.d/x")])
    ours = re.compile(r"[a-z0-9-]+(\.dcm)?")
    for path in (ward.site.folder / "instances").rglob("*"):
        assert ours.fullmatch(path.name), path
    assert not (Path("/etc/cron.d") / "x").exists()
    ward.ward.arrivals()


def test_the_same_uid_with_other_pixels_is_a_conflict_that_is_kept(ward):
    derived = ward.ward.corpus / "dev" / "malformed" / "derived"
    first, second = (sender.raw(derived / f"same_uid_other_pixels_{letter}.dcm") for letter in "ab")
    assert ward.ward.send([first]) == [0]
    assert ward.ward.send([second]) == [0]
    ward.ward.arrivals()
    uid = house.study_of(derived / "same_uid_other_pixels_a.dcm")
    told = ward.site.until(uid)
    assert told["line"]["state"] == "attention"
    assert told["line"]["instances"] == 1
    assert told["quarantined"] == [["the same SOPInstanceUID came with other pixels", 1]]
    states = ward.ward.rows(
        "SELECT state FROM instances WHERE sop_instance_uid = ? ORDER BY arrival", first.sop_uid
    )
    assert states == [("held",), ("conflict",)]


@pytest.mark.parametrize("data", [None, b""], ids=["announced as absent", "of no bytes"])
def test_an_object_without_a_dataset(ward, data):
    """Absent is what cannot be understood (PS3.4 table B.2-1); no bytes are kept and shown."""
    ward.ward.arrivals()
    assert ward.ward.send([sender.Raw(data)]) == [0xC000 if data is None else 0]
    assert len(ward.ward.arrivals()) == (0 if data is None else 1)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff", b""])
def test_what_is_no_dicom_at_all_ends_only_its_own_connection(ward, data):
    with socket.create_connection((servers.HOST, ward.site.port), timeout=10) as peer:
        peer.sendall(data)
    one = sender.raw(ward.ward.corpus / "dev" / "syntax" / "CT_small.dcm")
    assert ward.ward.send([one]) == [0]
    ward.ward.arrivals()


def test_strangers_are_turned_away(ward):
    one = sender.raw(ward.ward.corpus / "dev" / "syntax" / "CT_small.dcm")
    statuses = sender.store([one], ward.site.port, calling="STRANGER", called=house.AE_TITLE)
    assert statuses == [sender.REFUSED]


def test_after_all_this_the_next_study_is_read(ward, shared, tmp_path):
    packages = shared / "models" / "packages"
    house.supply(ward.site, packages / "ct-lung-air", packages / "keys" / "TEST-ONLY.pub.pem")
    series = shared / "corpus" / "dev" / "series" / "ct_chest_siemens_b40f_8mm"
    files = house.renamed(sorted(series.glob("*.dcm")), tmp_path / "good", {})
    ward.site.send(files)
    told = ward.site.until(house.study_of(files[0]))
    assert told["line"]["state"] == "delivered"
    assert {r["model"]: r["state"] for r in told["routes"]} == {
        "test.ct-lung-air": "reported", "test.bright": "reported"
    }  # fmt: skip
    log = ward.site.log.read_text(errors="replace")
    for sign in ("listener.died", "loop.failed", "worker.lost"):
        assert sign not in log, log[-3000:]
    assert ward.site.get("/health/ready", role=None).status == 200
