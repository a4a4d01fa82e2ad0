"""A house of paper for tests of the HTTP side: every room answers from memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from bridge.access import Access, LoginRow, Principal, SessionRow, TokenRow
from bridge.api.rooms import (
    Act,
    ArtifactFile,
    Check,
    LogFacts,
    SiteFacts,
    StudyPage,
    StudyQuery,
)
from bridge.errors import NotFound, Refused
from bridge.study import (
    ArtifactKind,
    DeliveryState,
    SeriesLine,
    StoryArtifact,
    StoryDelivery,
    StoryLine,
    StoryRoute,
    StudyLine,
    StudyState,
    StudyStory,
)

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
CANARY = "Canary^Ophelia"
CANARY_ID = "CANARY-4711"
CANARY_ACCESSION = "CANARYACC9"
SUMMARY, SR, SEG = "2.25.301", "2.25.302", "2.25.303"


def study_uid(number: int) -> str:
    return f"1.2.840.99.{number}"


class PaperDoors:
    def __init__(self) -> None:
        self.tokens: dict[str, TokenRow] = {}
        self.logins: dict[str, LoginRow] = {}
        self.sessions: dict[str, SessionRow] = {}

    def add_token(self, row):
        self.tokens[row.digest] = row

    def token(self, digest):
        return self.tokens.get(digest)

    def add_login(self, row):
        self.logins[row.digest] = row

    def take_login(self, digest):
        return self.logins.pop(digest, None)

    def add_session(self, row):
        self.sessions[row.digest] = row

    def session(self, digest):
        return self.sessions.get(digest)

    def touch_session(self, digest, seen_at):
        self.sessions[digest] = replace(self.sessions[digest], seen_at=seen_at)

    def end_session(self, digest):
        self.sessions.pop(digest, None)


class Counting:
    """Entropy that never repeats and never surprises."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, size: int) -> bytes:
        self.calls += 1
        return hashlib.sha256(b"entropy %d" % self.calls).digest()[:size]


class PaperRooms:
    def __init__(self, folder: Path, public: str = "checkpoint", secure: bool = False) -> None:
        self.site = SiteFacts(
            "General Hospital Radiology", "ledger.example.org/r", "0.1.0", public, secure
        )
        self.doors = PaperDoors()
        self.access = Access(self.doors, Counting())
        self.time = NOW
        self.lines = _lines()
        self.stories = {line.study_instance_uid: _story(line) for line in self.lines}
        self.acts: list[tuple[Act, str, str]] = []
        self.asked: list[StudyQuery] = []
        self.log_files = {"checkpoint": b"ledger.example.org/r\n7\nroot\n"}
        self.checks = (Check("database", True), Check("ledger", True))
        self.log_facts = LogFacts(7, 0)
        self.broken = False
        self._summary = folder / "summary.dcm"
        self._sr = folder / "sr.dcm"
        _summary_image().save_as(self._summary, enforce_file_format=True)
        _tiny_sr().save_as(self._sr, enforce_file_format=True)

    def now(self):
        return self.time

    def studies(self, query: StudyQuery) -> StudyPage:
        self.asked.append(query)
        if self.broken:
            raise RuntimeError(f"no such column: {CANARY}")
        text = query.text.lower()
        found = [
            line
            for line in self.lines
            if query.state in (None, line.state)
            and (not query.modality or query.modality in line.modalities)
            and any(
                text in word.lower()
                for word in (line.patient_id, line.patient_name, line.accession_number)
            )
        ]
        counts = Counter(line.state for line in self.lines)
        page = found[query.offset : query.offset + query.limit]
        return StudyPage(tuple(page), len(found), counts)

    def story(self, study_instance_uid: str) -> StudyStory | None:
        return self.stories.get(study_instance_uid)

    def models(self, who: Principal):  # noqa: ARG002
        return ()

    def act(self, act: Act, study_instance_uid: str, who: Principal) -> str:
        if study_instance_uid not in self.stories:
            raise NotFound("No such study is held here.")
        if act is Act.RETRY and study_instance_uid == study_uid(1):
            raise Refused("Nothing of this study has failed.")
        self.acts.append((act, study_instance_uid, who.name))
        return "Done."

    def artifact(self, study_instance_uid: str, sop_uid: str, who: Principal) -> ArtifactFile:  # noqa: ARG002
        files = {
            SUMMARY: ArtifactFile(ArtifactKind.SUMMARY, self._summary),
            SR: ArtifactFile(ArtifactKind.SR, self._sr),
        }
        if study_instance_uid not in self.stories or sop_uid not in files:
            raise NotFound("No such result.")
        return files[sop_uid]

    def receipt(self, sop_instance_uid: str, who: Principal) -> str:  # noqa: ARG002
        if sop_instance_uid == SEG:
            raise Refused("No checkpoint covers this result yet; ask again in a second.")
        if sop_instance_uid not in (SR, SUMMARY):
            raise NotFound("No such result.")
        return "c2sp.org/tlog-proof@v1\nextra AAAA\nindex 5\n"

    def ledger_file(self, path: str) -> bytes | None:
        return self.log_files.get(path)

    def log(self):
        return self.log_facts

    def ready(self):
        return self.checks

    def metrics(self):
        return b"radseal_up 1\n", "text/plain; version=0.0.4; charset=utf-8"


def _line(number: int, state: StudyState, words: str, **more: object) -> StudyLine:
    at = NOW - timedelta(minutes=7 * number)
    line = StudyLine(
        id=f"{number:032x}",
        study_instance_uid=study_uid(number),
        state=state,
        state_words=words,
        patient_id=f"P{1000 + number}",
        patient_name=("Meyer^Anna", "Sato^Kenji", "Okafor^Chidi", "Rossi^Lucia")[number % 4],
        accession_number=f"A{90210 + number}",
        study_date="20261124",
        modalities="CT",
        source="MODALITY1",
        instances=96,
        generation=1,
        received_at=at,
        updated_at=at,
    )
    return replace(line, **more)


def _lines() -> list[StudyLine]:
    s = StudyState
    first = [
        _line(0, s.RECEIVING, "41 images held; complete after 30 s of quiet", instances=41),
        _line(
            1,
            s.DELIVERED,
            "3 results stored at pacs",
            patient_name=CANARY,
            patient_id=CANARY_ID,
            accession_number=CANARY_ACCESSION,
        ),
        _line(2, s.WORKING, "brain-subcortical-18 is running", modalities="MR"),
        _line(3, s.DENIED, "consent refuses TREATDS: nothing was run", instances=80),
        _line(4, s.UNWANTED, "no active model wants this study", modalities="CR", instances=2),
        _line(5, s.FAILED, "ct-lung-air ended after 600 s, its time limit"),
        _line(6, s.ATTENTION, "1 delivery to research-pacs needs a person"),
    ]
    return first + [_line(n, s.DELIVERED, "3 results stored at pacs") for n in range(7, 140)]


def _leaf(number: int) -> str:
    return hashlib.sha256(b"leaf %d" % number).hexdigest()[:43] + "="


def _fact(second: int, stage: str, words: str, leaf: int | None, model: str | None = None):
    return StoryLine(
        NOW - timedelta(minutes=7) + timedelta(seconds=second),
        1,
        stage,
        stage,
        words,
        model,
        None if leaf is None else _leaf(leaf),
        None if leaf is None else leaf + 20,
    )


def _story(line: StudyLine) -> StudyStory:
    refused = StoryRoute(
        None, 1, "brain-subcortical-18", "1.0.0", "ab" * 32, "not wanted",
        "wants Modality MR, this study has CT", "", "", (), None, (),
    )  # fmt: skip
    series = (SeriesLine("1.2.840.99.1.2", line.modalities, "Thorax 1.0 B40f", line.instances, 96),)
    received = _fact(0, "receive", f"{line.instances} images received from MODALITY1", 0)
    if line.state is StudyState.RECEIVING:
        waiting = "41 of 96 images held; last image 8 s ago."
        return StudyStory(line, series, waiting, (), (), (received,))
    if line.state is StudyState.DENIED:
        denied = _fact(32, "consent", "denied: provision refuses TREATDS", 3)
        return StudyStory(line, series, "", (), (refused,), (received, denied))
    quarantined = (("a second patient's images", 2),) if line.state is StudyState.ATTENTION else ()
    return StudyStory(line, series, "", quarantined, (_route(), refused), _facts(received))


def _route() -> StoryRoute:
    at = NOW - timedelta(minutes=6)
    stored = StoryDelivery("pacs", DeliveryState.STORED, 1, "0x0000", at)
    dead = StoryDelivery(
        "research-pacs", DeliveryState.DEAD, 3, "refused: 0x0122 SOP class not supported", at
    )
    sr_class, seg_class = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.66.4"
    sc_class = "1.2.840.10008.5.1.4.1.1.7"
    return StoryRoute(
        id="r1",
        generation=1,
        model="ct-lung-density",
        version="1.0.0",
        model_digest="5c" * 32,
        state="reported",
        reason="",
        evidence="the source counts 96 images, all held, asked twice",
        statement="Lungs segmented and measured.",
        measurements=(
            ("Lung volume", "4 812", "mL"),
            ("Mean lung density", "-842.3", "HU"),
            ("Emphysema index LAA-950", "9.4", "%"),
            ("15th percentile (Perc15)", "-931", "HU"),
        ),
        seconds=6.4,
        artifacts=(
            StoryArtifact(ArtifactKind.SR, SR, sr_class, 1, 18_422, _leaf(6), (stored, dead)),
            StoryArtifact(ArtifactKind.SEG, SEG, seg_class, 1, 412_900, _leaf(7), (stored,)),
            StoryArtifact(ArtifactKind.SUMMARY, SUMMARY, sc_class, 1, 787_230, _leaf(8), (stored,)),
        ),
    )


def _facts(received: StoryLine) -> tuple[StoryLine, ...]:
    model = "ct-lung-density"
    return (
        received,
        _fact(6, "assemble", "the source counts 96 images, all held, asked twice", 1),
        _fact(6, "route", "1 of 2 models wants series 2", None),
        _fact(7, "consent", "permitted for TREATDS by the site's policy opt-out-treatment", 2),
        _fact(7, "infer", "started", 3, model),
        _fact(14, "infer", "completed in 6.4 s", 4, model),
        _fact(15, "report", "structured report, segmentation and summary composed", 5, model),
        _fact(15, "record", "checkpoint of 29 leaves signed and published", None),
        _fact(17, "deliver", "3 results stored at pacs", 8),
    )


def _summary_image() -> Dataset:
    image = Image.new("RGB", (512, 512), (12, 14, 16))
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 120, 452, 420), fill=(96, 96, 96))
    draw.ellipse((100, 160, 240, 390), fill=(40, 110, 120))
    draw.ellipse((272, 160, 412, 390), fill=(40, 110, 120))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.SOPInstanceUID = SUMMARY
    ds.Rows = ds.Columns = 512
    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    ds.PixelData = np.asarray(image).tobytes()
    return ds


def _tiny_sr() -> Dataset:
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator = "126000", "DCM"
    title.CodeMeaning = "Imaging Measurement Report"
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"
    ds.SOPInstanceUID = SR
    ds.Modality = "SR"
    ds.ValueType = "CONTAINER"
    ds.ContinuityOfContent = "SEPARATE"
    ds.ConceptNameCodeSequence = pydicom.Sequence([title])
    return ds
