"""Reading the header of a received file: hostile bytes in, an Instance or BadInstance out.

Pixels are never touched here; they are decoded in a child process (models.sandbox).
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, config, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from bridge.errors import BadInstance
from bridge.files import calling_ae_of, received_ns_of
from bridge.study import Instance, Patient, is_uid_as_sent

__all__ = [
    "IDENTITY", "OWN_MARK", "UNREADABLE", "attributes_of", "dataset_of", "dataset_sha256",
    "identity_of", "inflated", "malformed", "read_header", "read_instance", "same_pixel_bytes",
    "start_of_dataset",
]  # fmt: skip

OWN_MARK = "run by radseal"  # in Contributing Equipment of what we compose (bridge.report)
IDENTITY = (
    "PatientID", "IssuerOfPatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID",
    "SOPInstanceUID", "SOPClassUID", "Modality", "StudyDate", "AccessionNumber",
    "SpecificCharacterSet", "ContributingEquipmentSequence", "Rows", "InstanceNumber",
    "PatientSex", "PatientBirthDate", "PatientAge",
)  # fmt: skip
_SHAPE = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
UNREADABLE = (
    InvalidDicomError, BytesLengthException, EOFError, ValueError, KeyError, TypeError,
    AttributeError, NotImplementedError, RecursionError, OverflowError, LookupError,
    struct.error, zlib.error, MemoryError,
)  # fmt: skip
_INFLATED_LIMIT = 512 * 1024 * 1024
_TEXT_LIMIT = 1024
_HEAD = 144  # preamble, "DICM" and (0002,0000)

config.settings.reading_validation_mode = config.IGNORE


def inflated(file: BinaryIO, most: int = _INFLATED_LIMIT) -> tuple[bytes, int]:
    """Inflate what is left of a file: (data, bytes that follow the deflated stream).

    Raises BadInstance beyond `most` bytes and for a stream without an end, zlib.error.
    """
    inflater, out = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO()
    while not inflater.eof:
        chunk = inflater.unconsumed_tail or file.read(1 << 16)
        if not chunk:
            raise BadInstance("unreadable", "the dataset is malformed: its deflated end is lost")
        out.write(inflater.decompress(chunk, 1 << 24))
        if out.tell() > most:
            raise BadInstance("bomb", f"the deflated dataset expands beyond {most >> 20} MB")
    left = len(inflater.unused_data)
    while chunk := file.read(1 << 20):
        left += len(chunk)
    return out.getvalue(), left


def _is_deflated(head: bytes) -> bool:
    """Whether preamble and group 0002 name the deflated syntax, and not only hold its digits."""
    if DeflatedExplicitVRLittleEndian.encode() not in head:
        return False
    named = read_partial(BytesIO(head)).file_meta.get("TransferSyntaxUID")
    return bool(named == DeflatedExplicitVRLittleEndian)


def _inflate_carefully(file: BinaryIO, start: int) -> BytesIO:
    """Inflate a deflated dataset within a limit, so that a bomb ends as a sentence."""
    file.seek(0)
    head = file.read(start)
    # The meta group is kept, its syntax replaced: what follows is explicit little endian now.
    plain = head.replace(
        DeflatedExplicitVRLittleEndian.encode() + b"\0" * (len(DeflatedExplicitVRLittleEndian) % 2),
        b"1.2.840.10008.1.2.1\0\0\0",
    )
    return BytesIO(plain + inflated(file)[0])


def _start_of_dataset(path: Path) -> int:
    """Where the dataset begins: after the preamble and group 0002 (PS3.10 §7.1)."""
    with path.open("rb") as file:
        return start_of_dataset(file.read(_HEAD))


def start_of_dataset(head: bytes) -> int:
    """Where a file's dataset begins, by its first bytes; raises BadInstance for no DICOM file."""
    if len(head) < _HEAD or head[128:132] != b"DICM":
        raise BadInstance("not_dicom", "the file is no DICOM file")
    return _HEAD + int(struct.unpack_from("<L", head, _HEAD - 4)[0])


def _digest(path: Path, start: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def dataset_sha256(path: Path) -> str:
    """Give the SHA-256 of a file's data set as it lies there: what an input root is made of.

    Raises BadInstance for what is no DICOM file or cannot be read.
    """
    try:
        return _digest(path, _start_of_dataset(path))[0]
    except OSError as error:
        raise BadInstance("unreadable", f"the file cannot be read: {error.strerror}") from None


def dataset_of(path: Path, keywords: Sequence[str] | None = None) -> Dataset:
    """Read a file's header, everything before the pixels; raises BadInstance.

    `keywords` limits it to these attributes, which is much quicker.
    """
    tags = None if keywords is None else [tag for k in keywords if (tag := _tag(k)) is not None]
    try:
        start = _start_of_dataset(path)
        with path.open("rb") as file:
            deflated = _is_deflated(file.read(start))
            file.seek(0)
            source = _inflate_carefully(file, start) if deflated else file
            dataset = dcmread(source, stop_before_pixels=True, specific_tags=tags)
            if deflated:
                dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            return dataset
    except BadInstance:
        raise
    except OSError as error:
        raise BadInstance("unreadable", f"the file cannot be read: {error.strerror}") from None
    except UNREADABLE as error:
        raise BadInstance("unreadable", malformed(error)) from None


def malformed(error: Exception) -> str:
    """Say what is wrong with a dataset that cannot be read; never the library's text (PHI)."""
    match error:
        case RecursionError():
            return "the dataset is malformed: its sequences nest too deeply"
        case zlib.error():
            return "the dataset is malformed: its deflated bytes are damaged"
        case EOFError() | struct.error():
            return "the dataset is malformed: it ends in the middle of an element"
        case _:
            return f"the dataset is malformed ({type(error).__name__})"


def _json(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, MultiValue | list | tuple):
        return [_json(item) for item in list(value)[:64]]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) or type(value).__name__ in {"DSdecimal", "DSfloat", "IS"}:
        number = float(value)
        return number if number == number and abs(number) != float("inf") else None
    return str(value)[:_TEXT_LIMIT]


@functools.cache
def _tag(keyword: str) -> BaseTag | None:
    number = tag_for_keyword(keyword)
    return None if number is None else Tag(number)


def read_header(dataset: Dataset, keywords: Sequence[str]) -> dict[str, Any]:
    """Give the JSON values of these attributes; what is absent or cannot be read is left out."""
    values: dict[str, Any] = {}
    for keyword in keywords:
        tag = _tag(keyword)
        if tag is None or tag not in dataset:
            continue
        try:
            value = dataset[tag].value
            if value is not None and not isinstance(value, bytes):
                values[keyword] = _json(value)
        except UNREADABLE:
            continue
    return values


def _text(dataset: Dataset, keyword: str) -> str:
    tag = _tag(keyword)
    try:
        value = dataset[tag].value if tag is not None and tag in dataset else None
    except UNREADABLE:
        return ""
    return "" if value is None else str(value).replace("\0", "").strip()[:_TEXT_LIMIT]


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = _text(dataset, keyword)
    if not uid:
        raise BadInstance("missing", f"{keyword} is missing, which every object must have")
    if not is_uid_as_sent(uid):
        raise BadInstance("bad_uid", f"{keyword} is no UID")
    return uid


def _age_years(dataset: Dataset) -> float | None:
    """Age at the study in years: from birth and study date first, then from (0010,1010)."""
    born, studied = _text(dataset, "PatientBirthDate"), _text(dataset, "StudyDate")
    try:
        days = datetime.strptime(studied, "%Y%m%d") - datetime.strptime(born, "%Y%m%d")  # noqa: DTZ007
    except ValueError:
        stated = _text(dataset, "PatientAge")
        if re.fullmatch(r"[0-9]{3}[DWMY]", stated):
            per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[stated[3]]
            return int(stated[:3]) / per_year
        return None
    return days.days / 365.25 if 0 <= days.days < 150 * 366 else None


def _is_ours(dataset: Dataset) -> bool:
    try:
        items = dataset.get("ContributingEquipmentSequence") or ()
        return any(OWN_MARK in _text(item, "ContributionDescription") for item in items)
    except UNREADABLE:
        return False


def read_instance(path: Path, keywords: Sequence[str], issuer_of: Callable[[str], str]) -> Instance:
    """Read an arrival's header; raises BadInstance with a code and a sentence without PHI.

    `keywords` are the attributes that rules and geometry read; `issuer_of` says whose
    numbers a calling AE title's PatientIDs are, where (0010,0021) is absent.
    """
    start = _start_of_dataset(path)
    digest, size = _digest(path, start)
    if not size:
        raise BadInstance("empty", "the object holds no dataset")
    dataset = dataset_of(path, [*IDENTITY, *keywords])
    calling_ae = calling_ae_of(path.stem)
    return Instance(
        arrival=path.stem,
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        sop_class_uid=_uid(dataset, "SOPClassUID"),
        series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        transfer_syntax_uid=str(getattr(dataset.file_meta, "TransferSyntaxUID", "")),
        patient=_patient(dataset, issuer_of(calling_ae)),
        patient_name=_text(dataset, "PatientName"),
        accession_number=_text(dataset, "AccessionNumber"),
        study_date=_text(dataset, "StudyDate")[:16],
        modality=_text(dataset, "Modality")[:16],
        calling_ae=calling_ae,
        dataset_sha256=digest,
        size=size,
        received_at=datetime.fromtimestamp(received_ns_of(path.stem) / 1e9, UTC),
        attributes=attributes_of(dataset, keywords),
        own=_is_ours(dataset),
    )


def attributes_of(dataset: Dataset, keywords: Sequence[str]) -> dict[str, Any]:
    """Give what rules and geometry read of an image, with the patient's age and sex."""
    return {
        **read_header(dataset, [*keywords, "Rows", "InstanceNumber", "PatientSex"]),
        "AgeYears": _age_years(dataset),
    }


def identity_of(path: Path, issuer_of: Callable[[str], str]) -> tuple[Patient, str]:
    """Read whose image an arrival is and its StudyInstanceUID; raises BadInstance."""
    dataset = dataset_of(path, ["PatientID", "IssuerOfPatientID", "StudyInstanceUID"])
    patient = _patient(dataset, issuer_of(calling_ae_of(path.stem)))
    return patient, _uid(dataset, "StudyInstanceUID")


def _patient(dataset: Dataset, issuer: str) -> Patient:
    """Give the identity; `issuer` says whose number it is where the object does not."""
    return Patient(_text(dataset, "IssuerOfPatientID") or issuer, _text(dataset, "PatientID"))


def same_pixel_bytes(first: Path, second: Path) -> bool:
    """Whether two files hold the same pixels byte for byte, in the same encoding and shape.

    False decides nothing: pixels that are encoded otherwise may still be the same once they are
    decoded, which models.sandbox compares in a child process.
    """
    try:
        with first.open("rb") as one, second.open("rb") as other:
            if _up_to_pixels(one) != _up_to_pixels(other):
                return False
            while chunk := one.read(1 << 20):
                if other.read(1 << 20) != chunk:
                    return False
            return not other.read(1)
    except (OSError, *UNREADABLE):
        return False


def _up_to_pixels(file: BinaryIO) -> tuple[str, dict[str, Any]]:
    """Read what shapes the pixels and leave the file at the first byte of their element."""
    dataset = dcmread(file, stop_before_pixels=True)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ValueError("the bytes behind a deflated header are deflated as well")
    return syntax, read_header(dataset, _SHAPE)
