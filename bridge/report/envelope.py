"""What every result carries alike: patient and study as the source has them, equipment, times.

highdicom asks the clock and names itself; `dress` puts our own facts in place
of that, so that the same arguments always give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID
from pydicom.valuerep import PersonName

from bridge.report.codes import ACQUISITION, PROCESSING, short
from bridge.report.errors import ReportError
from bridge.report.identity import Gateway, Model, Naming, derived_uid
from models.findings import Code

__all__ = ["UNVERIFIED", "code_item", "dress", "header", "unique"]

UNVERIFIED = "AI result, not verified"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PATIENT_STUDY = _words(
    "PatientName PatientID IssuerOfPatientID TypeOfPatientID "
    "IssuerOfPatientIDQualifiersSequence PatientBirthDate PatientBirthTime PatientSex "
    "OtherPatientIDsSequence OtherPatientNames EthnicGroup PatientComments "
    "PatientSpeciesDescription PatientBreedDescription ResponsiblePerson "
    "PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence "
    "QualityControlSubject ClinicalTrialSponsorName ClinicalTrialProtocolID "
    "ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName "
    "ClinicalTrialSubjectID ClinicalTrialSubjectReadingID "
    "StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber "
    "IssuerOfAccessionNumberSequence StudyDescription ProcedureCodeSequence "
    "PhysiciansOfRecord NameOfPhysiciansReadingStudy RequestingService "
    "AdmittingDiagnosesDescription PatientAge PatientSize PatientWeight AdmissionID"
)
"""Attributes of the Patient, Clinical Trial Subject, General Study and Patient Study modules."""

_TYPE_2 = _words(
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime "
    "ReferringPhysicianName StudyID AccessionNumber"
)

_GEOMETRY = _words(
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber InstanceNumber "
    "Modality FrameOfReferenceUID PositionReferenceIndicator ImagePositionPatient "
    "ImageOrientationPatient PixelSpacing ImagerPixelSpacing SliceThickness "
    "SpacingBetweenSlices Rows Columns NumberOfFrames SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence DimensionIndexSequence DimensionOrganizationSequence "
    "ImageType SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored"
)

_DATED = {"DA": re.compile(r"\d{8}"), "TM": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")}
_AGE = re.compile(r"\d{3}[DWMY]")


def unique(sources: Sequence[Dataset]) -> list[Dataset]:
    """Return the source headers without repeats (a multi-frame image stands once)."""
    if not sources:
        raise ReportError("there is no source image to report on")
    seen: dict[str, Dataset] = {}
    for source in sources:
        seen.setdefault(str(source.SOPInstanceUID), source)
    return list(seen.values())


def header(source: Dataset) -> Dataset:
    """Return a copy with geometry and references only, its identity blank.

    It is what highdicom is shown: values of the patient that a scanner spelled
    wrong then cannot make it refuse.
    """
    light = Dataset()
    for keyword in _GEOMETRY:
        if keyword in source:
            light[keyword] = source[keyword]
    for keyword in _TYPE_2:
        setattr(light, keyword, "")
    light.Manufacturer = ""
    return light


def _transcribed(element: DataElement) -> DataElement:
    """Copy an element with its text decoded, so that it can be written as UTF-8."""
    if element.VR == "SQ":
        items = []
        for item in element.value or []:
            clean = Dataset()
            for inner in item:
                if not inner.tag.is_private and inner.VR != "UN":
                    clean.add(_transcribed(inner))
            items.append(clean)
        return DataElement(element.tag, "SQ", DicomSequence(items))
    if element.VR == "PN":
        names = element.value if element.VM > 1 else [element.value]
        plain = [PersonName(str(name or "")) for name in names]
        return DataElement(element.tag, "PN", plain if len(plain) > 1 else plain[0])
    return DataElement(element.tag, element.VR, element.value)


def _usable(element: DataElement) -> bool:
    """Return False for a date, time, age or number that no reader would accept."""
    value = element.value
    if element.VR == "UN":
        return False
    if element.VR in _DATED and value:
        return all(_DATED[element.VR].fullmatch(str(v)) for v in _values(value))
    if element.keyword == "PatientAge":
        return bool(_AGE.fullmatch(str(value or "")))
    if element.keyword in {"PatientWeight", "PatientSize"}:
        return value is not None and float(value) > 0
    return True


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        yield value
    else:
        yield from value


def _copy_patient_and_study(ds: Dataset, source: Dataset) -> None:
    """Copy patient and study as they are, re-encoded as UTF-8 (PS3.3 C.12.1.1.2)."""
    for keyword in _PATIENT_STUDY:
        if keyword in ds:
            del ds[keyword]
        if keyword in source and _usable(source[keyword]):
            ds.add(_transcribed(source[keyword]))
        elif keyword in _TYPE_2:
            setattr(ds, keyword, "")
    ds.SpecificCharacterSet = "ISO_IR 192"


def code_item(code: Code) -> Dataset:
    """Return the item of a code sequence (PS3.3 table 8.8-1)."""
    item = Dataset()
    if len(code.value) <= 16:
        item.CodeValue = code.value
    else:
        item.LongCodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = short(code.meaning)
    return item


def _zone(source: Dataset, moment: datetime) -> timezone:
    """Return the zone that this study's times are in: the source's own, else the given one."""
    said = re.fullmatch(r"([+-])(\d{2})(\d{2})", str(source.get("TimezoneOffsetFromUTC", "")))
    if said:
        minutes = int(said[2]) * 60 + int(said[3])
        return timezone(timedelta(minutes=minutes if said[1] == "+" else -minutes))
    offset = moment.utcoffset()
    if offset is None:
        raise ReportError("the times of a result must carry their zone")
    return timezone(offset)


def _equipment(
    source: Dataset, model: Model, gateway: Gateway, finished: datetime
) -> list[Dataset]:
    """Return Contributing Equipment: the scanner, then the model (AIR 6.5.3.1)."""
    items = []
    if str(source.get("Manufacturer", "") or ""):
        scanner = Dataset()
        scanner.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION)]
        for keyword in ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"):
            if str(source.get(keyword, "") or ""):
                scanner.add(_transcribed(source[keyword]))
        items.append(scanner)
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING)]
    item.Manufacturer = short(model.vendor)
    item.ManufacturerModelName = short(model.name)
    item.SoftwareVersions = short(model.version)
    item.DeviceUID = model.device_uid
    item.ContributionDateTime = finished.strftime("%Y%m%d%H%M%S.%f%z")
    item.ContributionDescription = short(
        f"{UNVERIFIED}{'; research use only' if model.research_only else ''}; "
        f"run by {gateway.model_name} {gateway.software_versions}",
        1024,
    )
    return [*items, item]


def _private_schemes(ds: Dataset) -> list[str]:
    """Return the local coding schemes (99…) that this object uses anywhere."""
    found: set[str] = set()
    for element in ds.iterall():
        if element.keyword == "CodingSchemeDesignator" and str(element.value).startswith("99"):
            found.add(str(element.value))
    return sorted(found)


def dress(
    ds: Dataset,
    *,
    source: Dataset,
    model: Model,
    gateway: Gateway,
    naming: Naming,
    description: str,
) -> None:
    """Give `ds` its patient, study, series description, equipment and times, in place."""
    _copy_patient_and_study(ds, source)
    zone = _zone(source, naming.started)
    started, finished = naming.started.astimezone(zone), naming.finished.astimezone(zone)
    day, clock = started.strftime("%Y%m%d"), started.strftime("%H%M%S.%f")
    ds.ContentDate = ds.SeriesDate = day
    ds.ContentTime = ds.SeriesTime = clock
    ds.InstanceCreationDate = finished.strftime("%Y%m%d")
    ds.InstanceCreationTime = finished.strftime("%H%M%S.%f")
    ds.TimezoneOffsetFromUTC = started.strftime("%z")
    research = " (research only)" if model.research_only else ""
    ds.SeriesDescription = short(f"AI {description}{research}, not verified")
    ds.SeriesNumber = naming.series_number
    ds.Manufacturer = short(gateway.manufacturer)
    ds.ManufacturerModelName = short(gateway.model_name)
    ds.SoftwareVersions = short(gateway.software_versions)
    ds.DeviceSerialNumber = short(gateway.serial)
    ds.InstitutionName = short(gateway.site_name)
    ds.ContributingEquipmentSequence = _equipment(source, model, gateway, finished)
    schemes = []
    for designator in _private_schemes(ds):
        item = Dataset()
        item.CodingSchemeDesignator = designator
        item.CodingSchemeName = f"Local codes {designator}"
        item.CodingSchemeResponsibleOrganization = short(gateway.manufacturer)
        schemes.append(item)
    if schemes:
        ds.CodingSchemeIdentificationSequence = schemes
    meta = ds.file_meta
    meta.ImplementationClassUID = UID(derived_uid("radseal", "implementation"))
    meta.ImplementationVersionName = short(f"RADSEAL {gateway.software_versions}", 16)
    if "FileMetaInformationGroupLength" in meta:
        del meta.FileMetaInformationGroupLength  # written anew
