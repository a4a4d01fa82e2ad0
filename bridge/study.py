"""The frozen words of the house: what the rooms say to each other.

Values that name a patient (ids, names, accession numbers, free text) are
`repr=False`, so that no log line or traceback shows them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

__all__ = [
    "AETitle",
    "ArtifactKind",
    "DeliveryState",
    "Evidence",
    "Instance",
    "InstanceState",
    "Patient",
    "RouteState",
    "SeriesLine",
    "StoryArtifact",
    "StoryDelivery",
    "StoryLine",
    "StoryRoute",
    "StudyLine",
    "StudyState",
    "StudyStory",
    "is_uid",
    "is_uid_as_sent",
    "uid_name",
]

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))*")
_UID_AS_SENT = re.compile(r"[0-9.]{1,64}")
_AE_TITLE = re.compile(r"[ !-\[\]-~]{1,16}")


def is_uid(text: str) -> bool:
    """Whether the text is a UID by PS3.5 §9.1: dotted numbers, no leading zeros, 64 characters."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def is_uid_as_sent(text: str) -> bool:
    """Whether the text can pass as a UID of real senders: digits and dots, at most 64.

    Real archives hold UIDs with leading zeros; we keep and route them, and never
    let any UID become a path (see `uid_name`).
    """
    return _UID_AS_SENT.fullmatch(text) is not None


def uid_name(uid: str) -> str:
    """Give the file name that stands for a UID: 32 hex digits, whatever the UID held."""
    return hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class AETitle(str):
    """An AE title by PS3.5 §6.2: 1 to 16 characters, no backslash or control, not only spaces."""

    __slots__ = ()

    def __new__(cls, text: str) -> AETitle:
        """Strip the padding; raises ValueError for what is no AE title."""
        if not text.strip() or _AE_TITLE.fullmatch(text.strip()) is None:
            raise ValueError(f"{text!r} is no AE title: 1 to 16 characters, no backslash")
        return super().__new__(cls, text.strip())


class StudyState(StrEnum):
    """Where a study stands, as the list of studies shows it."""

    RECEIVING = "receiving"
    WORKING = "working"
    DELIVERED = "delivered"
    DENIED = "denied"
    UNWANTED = "unwanted"
    FAILED = "failed"
    ATTENTION = "attention"  # a dead letter or a quarantine waits for a person


class InstanceState(StrEnum):
    """What became of one received instance."""

    HELD = "held"
    QUARANTINED = "quarantined"
    CONFLICT = "conflict"
    DISCARDED = "discarded"
    OWN = "own"


class RouteState(StrEnum):
    """Where a route (model x series) stands."""

    WAITING = "waiting"
    SEALING = "sealing"
    CARRIED = "carried"  # the same input was read before by this model: its result stands
    DENIED = "denied"
    RUNNING = "running"
    REPORTED = "reported"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """Where a delivery (artifact x destination) stands."""

    WAITING = "waiting"
    STORED = "stored"
    HELD = "held"  # consent no longer permits it
    DEAD = "dead"
    CANCELLED = "cancelled"


class ArtifactKind(StrEnum):
    """The objects made from findings, by the names that `send` uses."""

    SR = "sr"
    SR_COMPREHENSIVE = "sr-comprehensive"  # the same report for a PACS without 3D SR
    SR_ENHANCED = "sr-enhanced"
    SEG = "seg"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Patient:
    """(issuer, PatientID) after trimming (design §4a); an empty id means unidentified."""

    issuer: str = field(repr=False)
    patient_id: str = field(repr=False)

    @property
    def identified(self) -> bool:
        """Whether there is a PatientID at all."""
        return bool(self.patient_id)


@dataclass(frozen=True, slots=True)
class Instance:
    """One received object, as its header says and as it lies on disk.

    `arrival` is the name of its file, unique for every reception; `dataset_sha256`
    is over the dataset's bytes as sent (without group 0002). `attributes` holds the
    JSON values of the keywords that rules, geometry and preprocessing read.
    """

    arrival: str
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    patient: Patient = field(repr=False)
    patient_name: str = field(repr=False)
    accession_number: str = field(repr=False)
    study_date: str
    modality: str
    calling_ae: str
    dataset_sha256: str
    size: int
    received_at: datetime
    attributes: Mapping[str, Any] = field(repr=False)
    own: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why an input is called complete (design §4a), strongest first.

    `kind` is one of counts, explicit, quiet, max-wait; `held` and `expected` count
    instances (`expected` None where nobody was askable). `incomplete` says that the
    input is run although images are known to be missing.
    """

    kind: str
    held: int
    expected: int | None
    seconds: int
    incomplete: bool = False

    @property
    def words(self) -> str:
        """Say it for the page."""
        if self.incomplete:
            return f"incomplete: {self.held} of {self.expected} images after {self.seconds} s"
        match self.kind:
            case "counts":
                apart = (self.expected or 0) - self.held
                where = f"{self.held} held and {apart} set apart" if apart > 0 else "all held"
                return f"the source counts {self.expected} images, {where}, asked twice"
            case "explicit":
                return f"declared complete by a person or program, {self.held} images"
            case "quiet":
                return f"{self.held} images, nothing new for {self.seconds} s"
            case _:
                return f"{self.held} images when the longest wait of {self.seconds} s was over"


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """One series as the study page shows it."""

    series_instance_uid: str
    modality: str
    description: str = field(repr=False)
    held: int
    expected: int | None


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One line of the list of studies."""

    id: str
    study_instance_uid: str
    state: StudyState
    state_words: str
    patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    accession_number: str = field(repr=False)
    study_date: str
    modalities: str
    source: str
    instances: int
    generation: int
    received_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One fact of a study's life: when, at which stage, in words, and its leaf if it has one.

    `leaf` is the base64 leaf hash; `index` is its place in the log once it is covered
    by a published checkpoint.
    """

    at: datetime
    generation: int
    stage: str
    code: str
    words: str
    model: str | None = None
    leaf: str | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class StoryDelivery:
    """One artifact on its way to one destination."""

    destination: str
    state: DeliveryState
    attempts: int
    words: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class StoryArtifact:
    """One object made from a run."""

    kind: ArtifactKind
    sop_instance_uid: str
    sop_class_uid: str
    revision: int
    size: int
    leaf: str | None
    deliveries: tuple[StoryDelivery, ...]


@dataclass(frozen=True, slots=True)
class StoryRoute:
    """One model's way with this study: wanted and run, or not wanted and why."""

    id: str | None
    generation: int
    model: str
    version: str
    model_digest: str
    state: str
    reason: str
    evidence: str
    statement: str
    measurements: tuple[tuple[str, str, str], ...]  # (what, value, unit) as text
    seconds: float | None
    artifacts: tuple[StoryArtifact, ...]


@dataclass(frozen=True, slots=True)
class StudyStory:
    """Everything that the page of one study and `radseal why` show."""

    line: StudyLine
    series: tuple[SeriesLine, ...]
    waiting: str
    quarantined: tuple[tuple[str, int], ...]  # (reason, how many instances)
    routes: tuple[StoryRoute, ...]
    lines: tuple[StoryLine, ...]
