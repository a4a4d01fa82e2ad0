"""AEs that we call: C-ECHO, C-FIND for counts, C-STORE of results.

Outcomes are values, not exceptions: a peer that is down, slow or strict is an
ordinary day. Statuses follow PS3.4 §B.2.3 (storage) and §C.4.1 (query).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

__all__ = ["Counted", "Peer", "Sent", "counts", "echo", "store"]

TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Peer:
    """An AE: called by `ae_title` at host and port, from our `calling` AE title."""

    ae_title: str
    host: str
    port: int
    calling: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one object: stored, or to be tried again, or refused for good."""

    outcome: Literal["stored", "transient", "permanent"]
    words: str


@dataclass(frozen=True, slots=True)
class Counted:
    """A source's counts: instances in each series, and each series' modality."""

    series: Mapping[str, int]
    modalities: Mapping[str, str]


@contextmanager
def _associated(peer: Peer, contexts: Sequence[Any]) -> Iterator[Any]:
    ae = AE(ae_title=peer.calling)
    ae.requested_contexts = list(contexts)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT
    ae.connection_timeout = 10
    association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title, max_pdu=0)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _why_not(association: Any, peer: Peer) -> str:
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    if association.is_rejected:
        return f"{where} rejected the association; does it know our AE title {peer.calling}?"
    return f"{where} does not answer"


def echo(peer: Peer) -> tuple[bool, str]:
    """C-ECHO: whether the peer answers, and in words what happened."""
    with _associated(peer, [build_context(Verification)]) as association:
        if not association.is_established:
            return False, _why_not(association, peer)
        status = association.send_c_echo()
    answered = bool(status) and status.Status == 0
    return answered, "answers" if answered else "the C-ECHO failed"


def counts(peer: Peer, study_instance_uid: str) -> Counted | None:
    """Ask by C-FIND how many instances each series has; None when it cannot be told.

    No answer, an error or an empty count means that the source is not askable
    (design §4a).
    """
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID = study_instance_uid
    query.SeriesInstanceUID = ""
    query.Modality = ""
    query.NumberOfSeriesRelatedInstances = None
    series: dict[str, int] = {}
    modalities: dict[str, str] = {}
    model = StudyRootQueryRetrieveInformationModelFind
    with _associated(peer, [build_context(model)]) as association:
        if not association.is_established:
            return None
        for status, found in association.send_c_find(query, model):
            if not status or status.Status not in {0x0000, 0xFF00, 0xFF01}:
                return None
            if found is None:
                continue
            count = found.get("NumberOfSeriesRelatedInstances")
            uid = str(found.get("SeriesInstanceUID", ""))
            if count is None or not uid:
                return None
            series[uid] = int(count)
            modalities[uid] = str(found.get("Modality", ""))
    return Counted(series, modalities) if series else None


def store(peer: Peer, objects: Iterable[tuple[str, Path]]) -> dict[str, Sent]:
    """C-STORE files in one association; returns what became of each SOPInstanceUID.

    The stored bytes are sent: a file whose syntax the peer does not take is encoded as
    implicit little endian, which every AE must take, without a change of content.
    """
    datasets = {uid: dcmread(BytesIO(path.read_bytes())) for uid, path in objects}
    wanted = sorted({(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets.values()})
    contexts = []
    for sop_class, syntax in wanted:
        contexts.append(build_context(sop_class, [syntax]))
        if syntax == ExplicitVRLittleEndian:
            contexts.append(build_context(sop_class, [ImplicitVRLittleEndian]))
    with _associated(peer, contexts) as association:
        if not association.is_established:
            lost = Sent("transient", _why_not(association, peer))
            return dict.fromkeys(datasets, lost)
        return {uid: _send(association, peer, dataset) for uid, dataset in datasets.items()}


def _send(association: Any, peer: Peer, dataset: Dataset) -> Sent:
    if not association.is_established:
        return Sent("transient", "the association broke before this object was sent")
    accepted = {c.abstract_syntax for c in association.accepted_contexts}
    if dataset.SOPClassUID not in accepted:
        return Sent(
            "permanent",
            f"{peer.ae_title} does not take {dataset.SOPClassUID.name}; take it out of `send`, "
            "or let the PACS accept this SOP class",
        )
    try:
        status = association.send_c_store(dataset)
    except (ValueError, RuntimeError, AttributeError) as error:
        return Sent("transient", f"the object could not be sent ({type(error).__name__})")
    return _verdict(status)


def _verdict(status: Dataset) -> Sent:
    """Judge a C-STORE status (PS3.4 table B.2-1)."""
    if not status:
        return Sent("transient", "no answer to the C-STORE within the time limit")
    code = int(status.Status)
    if code in {0x0000, 0xB000, 0xB006, 0xB007}:
        return Sent("stored", f"stored, status 0x{code:04X}")
    if code & 0xFF00 == 0xA700 or code in {0x0110, 0x0213}:
        return Sent("transient", f"the peer is out of resources, status 0x{code:04X}")
    return Sent("permanent", f"the peer refused the object, status 0x{code:04X}")
