"""A C-STORE sender for objects that no toolkit would send: their bytes, as they are.

The dataset is never parsed: what stands behind the meta group goes over the wire
under the SOP class, instance UID and transfer syntax that the caller says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom
import servers
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

REFUSED = -1  # the peer took no association, or not this SOP class in this transfer syntax
NO_ANSWER = -2


@dataclass(frozen=True)
class Raw:
    """An object to send; `data` is the dataset without preamble and meta group.

    None announces that there is no dataset, b"" sends one of no bytes.
    """

    data: bytes | None
    syntax: str = str(ImplicitVRLittleEndian)
    sop_class: str = str(CTImageStorage)
    sop_uid: str = "1.2.3.4"


def raw(path: Path) -> Raw:
    """Take a file apart, however little of it is DICOM."""
    data = path.read_bytes()
    head, body = _split(data)
    syntax = _text(head, 0x0010) or _sniffed(body)
    sop_class = _text(head, 0x0002) or str(CTImageStorage)
    return Raw(body, syntax, sop_class, _text(head, 0x0003) or "1.2.3.4")


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Split into meta group and dataset; a file without preamble is all dataset (or meta)."""
    start = 132 if data[128:132] == b"DICM" else 0
    place = start
    while data[place : place + 2] == b"\x02\x00" and len(data) >= place + 8:
        long = data[place + 4 : place + 6] in {b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF"}
        if long:
            place += 12 + struct.unpack("<L", data[place + 8 : place + 12])[0]
        else:
            place += 8 + struct.unpack("<H", data[place + 6 : place + 8])[0]
    return data[start:place], data[place:]


def _text(head: bytes, element: int) -> str:
    mark = struct.pack("<HH", 2, element) + b"UI"
    place = head.find(mark)
    if place < 0:
        return ""
    length = struct.unpack("<H", head[place + 6 : place + 8])[0]
    return head[place + 8 : place + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")


def _sniffed(body: bytes) -> str:
    """Guess a syntax as a careless sender would: a VR in letters is explicit."""
    explicit = body[4:6].isalpha() and body[4:6].isupper()
    if explicit and body[:2] == b"\0\x08":
        return "1.2.840.10008.1.2.2"
    return "1.2.840.10008.1.2.1" if explicit else "1.2.840.10008.1.2"


def fresh(one: Raw, path: Path, number: int) -> tuple[Raw, str]:
    """Give a copy whose UIDs no other object has, of the same length, and its study's UID.

    Where the UIDs cannot be read, the copy is the same and the study is "".
    """
    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        found = [
            str(dataset.get(keyword) or "")
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        ]
    except Exception:  # noqa: BLE001 - hostile files raise whatever they like
        return one, ""
    data = one.data
    named = []
    for kind, uid in zip("123", found, strict=True):
        new = _other(uid, f"{kind}{number:04d}") if len(uid) > 12 else uid
        data = data.replace(uid.encode(), new.encode()) if uid else data
        named.append(new)
    return Raw(data, one.syntax, one.sop_class, named[2] or one.sop_uid), named[0]


def _other(uid: str, mark: str) -> str:
    """Give a UID of this length that only this mark gives."""
    if any(character not in "0123456789." for character in uid):
        return uid  # hostile: it stays what it is
    return ("2.25." + mark + "7" * len(uid))[: len(uid)]


def store(objects: list[Raw], port: int, *, calling: str, called: str) -> list[int]:
    """C-STORE objects in one association; return the status of each (or one of the above)."""
    ae = AE(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    kinds = sorted({(one.sop_class, one.syntax) for one in objects})
    ae.requested_contexts = [build_context(kind, [syntax]) for kind, syntax in kinds]
    association = ae.associate(servers.HOST, port, ae_title=called)
    if not association.is_established:
        refused = association.is_rejected or not association.accepted_contexts
        return [REFUSED if refused else NO_ANSWER] * len(objects)
    try:
        return [_send(association, number, one) for number, one in enumerate(objects, start=1)]
    finally:
        if association.is_established:
            association.release()


def _send(association: object, number: int, one: Raw) -> int:
    found = [
        context.context_id
        for context in association.accepted_contexts
        if context.abstract_syntax == one.sop_class and context.transfer_syntax[0] == one.syntax
    ]
    if not found:
        return REFUSED
    if not association.is_established:
        return NO_ANSWER
    request = C_STORE()
    request.MessageID, request.Priority = number, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = one.sop_class, one.sop_uid
    request.DataSet = None if one.data is None else BytesIO(one.data)
    association._reactor_checkpoint.clear()
    try:
        association.dimse.send_msg(request, found[0])
        if one.data == b"":  # pynetdicom announces a dataset and then sends no fragment of it
            association.dul.send_pdu(_empty_fragment(found[0]))
        _, answer = association.dimse.get_msg(block=True)
    finally:
        association._reactor_checkpoint.set()
    return NO_ANSWER if answer is None or answer.Status is None else int(answer.Status)


def _empty_fragment(context_id: int) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[context_id, b"\x02"]]  # dataset, last fragment
    return primitive
