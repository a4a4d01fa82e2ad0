"""What the HTTP side asks of the house: one small protocol that the service implements.

The methods are called from worker threads, several at a time. They raise the errors of
`bridge.errors` (NotFound → 404, Refused → 409, …); their texts reach the reader and hold no PHI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from bridge.access import Access, Principal
from bridge.study import ArtifactKind, StudyLine, StudyState, StudyStory


class Act(StrEnum):
    """What a person may do to a study."""

    COMPLETE = "complete"
    RETRY = "retry"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What the pages need to know of site.toml.

    `public` is [ledger] public; `secure` says that browsers reach us by https (own certificate or
    trusted proxy), then cookies are marked Secure and HSTS is sent.
    """

    name: str
    origin: str
    version: str
    public: str = "checkpoint"
    secure: bool = False


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """Which studies: newest reception first, `limit` of them after `offset` others.

    `text` is what a person typed and may be PHI: looked for in patient id, patient name and
    accession number, case ignored, and as a whole StudyInstanceUID. Empty or None = no filter.
    """

    state: StudyState | None = None
    modality: str = ""
    text: str = field(default="", repr=False)
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True, slots=True)
class StudyPage:
    """One page of studies: `total` match the query; `counts` is per state over all studies."""

    lines: tuple[StudyLine, ...]
    total: int
    counts: Mapping[StudyState, int]


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """An artifact of ours as stored: a DICOM file of this kind."""

    kind: ArtifactKind
    path: Path


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of being ready: a short name, whether it holds, and words with the fix."""

    name: str
    ok: bool
    words: str = ""


@dataclass(frozen=True, slots=True)
class WitnessLine:
    """One of the site's witnesses, or their quorum: its state in a word, and words with the fix."""

    name: str
    state: str
    ok: bool
    words: str


@dataclass(frozen=True, slots=True)
class LogFacts:
    """The log: leaves published, leaves under the witnesses' quorum, a line for each witness."""

    size: int
    witnessed: int
    witnesses: tuple[WitnessLine, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A registered model: `digest` is that of models/model.onnx, `package` the whole folder's."""

    id: str
    version: str
    name: str
    vendor: str
    state: str
    digest: str
    package: str
    registered_at: datetime


class Rooms(Protocol):
    """The house as the HTTP side sees it."""

    @property
    def site(self) -> SiteFacts:
        """Facts of the site; constant while the service runs."""

    @property
    def access(self) -> Access:
        """The doors: tokens, links, sessions."""

    def now(self) -> datetime:
        """Give the time, aware UTC."""

    def studies(self, query: StudyQuery) -> StudyPage:
        """List studies."""

    def story(self, study_instance_uid: str) -> StudyStory | None:
        """Tell everything about one study, None if it is not here."""

    def act(self, act: Act, study_instance_uid: str, who: Principal) -> str:
        """Do it and say in one sentence what happens now; NotFound, or Refused with the reason."""

    def artifact(self, study_instance_uid: str, sop_uid: str, who: Principal) -> ArtifactFile:
        """Find a stored artifact of this study; NotFound when it is not of this study."""

    def receipt(self, sop_instance_uid: str, who: Principal) -> str:
        """Give the tlog-proof text; NotFound, or Refused while no checkpoint covers the leaf."""

    def ledger_file(self, path: str) -> bytes | None:
        """Read a published file of the log; `path` is "checkpoint" or "tile/…", checked before."""

    def log(self) -> LogFacts:
        """Say how far the log is and how its witnesses stand."""

    def models(self, who: Principal) -> tuple[ModelLine, ...]:
        """List the models that this person may see, newest first."""

    def bring(self, chunks: Iterable[bytes], who: Principal) -> tuple[ModelLine, bool]:
        """Register the package that a zip's bytes hold; whether it is new.

        Refused with the first fault, NotAllowed for another vendor's, TooLarge, TryAgain.
        """

    def ready(self) -> tuple[Check, ...]:
        """Check what must hold before work is taken."""

    def metrics(self) -> tuple[bytes, str]:
        """Give the metrics and their content type."""
