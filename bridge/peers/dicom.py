"""AEs that we call: C-ECHO, C-FIND for counts, C-STORE of results.

Outcomes are values, not exceptions: a peer that is down, slow or strict is an
ordinary day. Statuses follow PS3.4 §B.2.3 (storage) and §C.4.1 (query).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_context, evt
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
    status: int | None = None
    not_taken: bool = False  # the peer accepted no context for the object's SOP class


_NO_ANSWER = Sent("transient", "no answer to the C-STORE: the connection broke or time ran out")
_BROKEN = Sent("transient", "the association broke before this object was sent")


_STRANGE = Sent("permanent", "it is no DICOM file with a meta group, so it was not sent")


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
    association = ae.associate(
        peer.host,
        peer.port,
        ae_title=peer.ae_title,
        max_pdu=0,
        evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay)],
    )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _without_delay(event: Any) -> None:
    # Else both ends wait 40 ms for each other's delayed ACK, at every message.
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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
            uid, count = str(found.get("SeriesInstanceUID", "")), _count(found)
            if count is None or not uid:
                return None
            # An archive that files a study under two patients names a series once for each.
            series[uid] = series.get(uid, 0) + count
            modalities[uid] = str(found.get("Modality", ""))
    return Counted(series, modalities) if series else None


def _count(found: Dataset) -> int | None:
    """Read (0020,1209) as a peer wrote it; None for what is no count."""
    try:
        count = int(found.get("NumberOfSeriesRelatedInstances"))
    except (TypeError, ValueError):
        return None
    return count if count >= 0 else None


def store(peer: Peer, objects: Iterable[tuple[str, Path]]) -> dict[str, Sent]:
    """C-STORE files in one association; returns what became of each, by the key it came with.

    The stored bytes are sent as they are, chunk by chunk. Only where the peer does not take
    explicit little endian, they are encoded as implicit, without a change of content.
    """
    _config.STORE_SEND_CHUNKED_DATASET = True
    files = dict(objects)
    metas = {key: meta for key, path in files.items() if (meta := _meta(path)) is not None}
    strange = dict.fromkeys(files.keys() - metas.keys(), _STRANGE)
    if not metas:
        return strange
    contexts = []
    for sop_class, syntax in sorted(
        {(m.MediaStorageSOPClassUID, m.TransferSyntaxUID) for m in metas.values()}
    ):
        contexts.append(build_context(sop_class, [syntax]))
        if syntax == ExplicitVRLittleEndian:
            contexts.append(build_context(sop_class, [ImplicitVRLittleEndian]))
    with _associated(peer, contexts) as association:
        if not association.is_established and not _took_nothing(association):
            lost = Sent("transient", _why_not(association, peer))
            return strange | dict.fromkeys(metas, lost)
        sent: dict[str, Sent] = strange
        for key, meta in metas.items():
            # After a broken connection pynetdicom still calls it established for a moment; a
            # second object sent into it would wait for its answer until the time limit.
            if any(one is _NO_ANSWER for one in sent.values()):
                sent[key] = _BROKEN
            else:
                sent[key] = _send(association, peer, files[key], meta)
        return sent


def _meta(path: Path) -> Dataset | None:
    """Read what a C-STORE needs to know of a file (group 0002); None where it does not say it."""
    try:
        meta = read_file_meta_info(path)
    except InvalidDicomError:
        return None
    said = "MediaStorageSOPClassUID" in meta and "TransferSyntaxUID" in meta
    return meta if said else None


def _took_nothing(association: Any) -> bool:
    """Whether the peer answered and accepted none of our contexts (pynetdicom then aborts)."""
    return bool(association.rejected_contexts) and not association.accepted_contexts


def _send(association: Any, peer: Peer, path: Path, meta: Dataset) -> Sent:
    if not association.is_established and not _took_nothing(association):
        return _BROKEN
    sop_class = meta.MediaStorageSOPClassUID
    taken = {
        c.transfer_syntax[0]
        for c in association.accepted_contexts
        if c.abstract_syntax == sop_class
    }
    if not taken:
        return Sent(
            "permanent",
            f"{peer.ae_title} does not take {sop_class.name}; take it out of `send`, or let the "
            "PACS accept this SOP class",
            not_taken=True,
        )
    as_it_is = meta.TransferSyntaxUID in taken
    try:
        status = association.send_c_store(path if as_it_is else dcmread(path))
    except (ValueError, RuntimeError, AttributeError) as error:
        return Sent("transient", f"the object could not be sent ({type(error).__name__})")
    return _verdict(status)


def _verdict(status: Dataset) -> Sent:
    """Judge a C-STORE status (PS3.4 table B.2-1)."""
    if not status:
        return _NO_ANSWER
    code = int(status.Status)
    if code in {0x0000, 0xB000, 0xB006, 0xB007}:
        return Sent("stored", f"stored, status 0x{code:04X}", code)
    if code & 0xFF00 == 0xA700 or code in {0x0110, 0x0213}:
        return Sent("transient", f"the peer is out of resources, status 0x{code:04X}", code)
    return Sent("permanent", f"the peer refused the object, status 0x{code:04X}", code)
