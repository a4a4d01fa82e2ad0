"""The house as the HTTP side sees it: implements `bridge.api.rooms.Rooms`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from bridge import acts, ambient, metrics
from bridge.access import Access, Principal
from bridge.api.rooms import (
    Act,
    ArtifactFile,
    Check,
    LogFacts,
    ModelLine,
    SiteFacts,
    StudyPage,
    StudyQuery,
    WitnessLine,
)
from bridge.errors import NotFound, Refused, StorageFull, TryAgain
from bridge.home import VERSION
from bridge.rooms import Rooms
from bridge.store import arrivals, catalog, story, work
from bridge.store.catalog import ModelRow
from bridge.store.database import reading
from bridge.store.people import People
from bridge.study import StudyStory, is_uid_as_sent
from bridge.witnessing import witnesses
from ledger.errors import LedgerError

__all__ = ["Front"]


class Front:
    """Answers pages and API from the rows; every act goes through `bridge.acts`."""

    def __init__(self, rooms: Rooms, healthy: Callable[[], Mapping[str, bool]]) -> None:
        self._rooms = rooms
        self._healthy = healthy
        self._bringing = threading.Lock()
        self._access = Access(People(rooms.database), ambient.entropy)
        self._site = SiteFacts(
            rooms.site.name, rooms.site.origin, VERSION, rooms.site.ledger.public
        )

    @property
    def site(self) -> SiteFacts:
        """Facts of the site."""
        return self._site

    @property
    def access(self) -> Access:
        """The doors."""
        return self._access

    def now(self) -> datetime:
        """Give the time."""
        return ambient.now()

    def studies(self, query: StudyQuery) -> StudyPage:
        """List studies."""
        text = query.text.strip()
        uid = text if text and is_uid_as_sent(text) and "." in text else None
        with reading(self._rooms.database) as connection:
            lines, total = story.list_studies(
                connection, state=query.state, modality=query.modality or None,
                search=None if uid else text or None, uid=uid, limit=query.limit,
                offset=query.offset,
            )  # fmt: skip
            return StudyPage(tuple(lines), total, story.counts(connection))

    def story(self, study_instance_uid: str) -> StudyStory | None:
        """Tell everything about one study, each leaf with its place in the log."""
        with reading(self._rooms.database) as connection:
            study_id = story.find(connection, study_instance_uid)
            if study_id is None:
                return None
            told = story.story(connection, study_id)
        lines = tuple(
            replace(line, index=self._rooms.record.covered(line.leaf)) if line.leaf else line
            for line in told.lines
        )
        return replace(told, lines=lines)

    def act(self, act: Act, study_instance_uid: str, who: Principal) -> str:  # noqa: ARG002
        """Do it; raises NotFound or Refused with the reason."""
        match act:
            case Act.COMPLETE:
                return acts.complete(self._rooms, study_instance_uid)
            case Act.RETRY:
                return acts.retry(self._rooms, study_instance_uid)
            case Act.CANCEL:
                return acts.cancel(self._rooms, study_instance_uid)

    def artifact(
        self,
        study_instance_uid: str,
        sop_uid: str,
        who: Principal,  # noqa: ARG002
    ) -> ArtifactFile:
        """Find a stored artifact of this study."""
        with reading(self._rooms.database) as connection:
            study_id = story.find(connection, study_instance_uid)
            row = work.artifact(connection, sop_uid)
        if row is None or row.study_id != study_id:
            raise NotFound("no such result belongs to this study")
        return ArtifactFile(row.kind, self._rooms.files.as_sent(row.study_id, row.sop_instance_uid))

    def receipt(self, sop_instance_uid: str, who: Principal | None = None) -> str:  # noqa: ARG002
        """Give the tlog-proof of the leaf that says this artifact was composed."""
        with reading(self._rooms.database) as connection:
            row = work.artifact(connection, sop_instance_uid)
            if row is None:
                raise NotFound("no result of this site has this SOPInstanceUID")
            leaf = arrivals.leaf_of(connection, f"composed/{row.run_id}/{row.kind}")
        try:
            return self._rooms.record.proof(leaf)
        except LedgerError as error:
            raise Refused(f"{error}; try again in a second") from None

    def ledger_file(self, path: str) -> bytes | None:
        """Read a published file of the log."""
        file = self._rooms.folder / "ledger" / path
        return file.read_bytes() if file.is_file() else None

    def log(self) -> LogFacts:
        """Say how far the log is and how its witnesses stand."""
        told = witnesses.seen(self._rooms.site, self._rooms.record.log.size(), self.now())
        lines = tuple(WitnessLine(w.name, w.state, w.ok, w.words) for w in told.lines)
        return LogFacts(told.size, told.witnessed, lines)

    def models(self, who: Principal) -> tuple[ModelLine, ...]:
        """List the models that this person may see."""
        with reading(self._rooms.database) as connection:
            rows = catalog.list_models(connection)
        mine = [row for row in rows if who.vendor in (None, row.vendor)]
        mine.sort(key=lambda row: row.registered_at, reverse=True)
        return tuple(map(_line, mine))

    def bring(self, chunks: Iterable[bytes], who: Principal) -> tuple[ModelLine, bool]:
        """Register the package that a zip's bytes hold; one at a time."""
        if not self._bringing.acquire(blocking=False):
            raise TryAgain("another package is being looked at; try again in a minute")
        try:
            if self._rooms.files.is_full():
                raise StorageFull
            now = self.now()
            row = self._rooms.registrar.bring(
                chunks, now, by=who.name, vendor=who.vendor,
                most=self._rooms.site.models.max_package_mb << 20,
            )  # fmt: skip
            return _line(row), row.registered_at == now
        finally:
            self._bringing.release()

    def ready(self) -> tuple[Check, ...]:
        """Check what must hold before work is taken."""
        parts = [
            Check(name, ok, "" if ok else f"the {name} does not run; see the service's log")
            for name, ok in self._healthy().items()
        ]
        full = self._rooms.files.is_full()
        words = "the disk is below its watermark: free space" if full else ""
        return (*parts, Check("disk", not full, words))

    def metrics(self) -> tuple[bytes, str]:
        """Give the metrics in Prometheus' text form."""
        return generate_latest(metrics.REGISTRY), CONTENT_TYPE_PLAIN_0_0_4


def _line(row: ModelRow) -> ModelLine:
    return ModelLine(
        row.id, row.version, row.name, row.vendor, row.state, row.digest, row.package_digest,
        row.registered_at,
    )  # fmt: skip
