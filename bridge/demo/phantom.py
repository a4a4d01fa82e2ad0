"""A synthetic chest CT with emphysema, and what a measurement of it must find.

**What counts as lung.** The truth comes from the label map, never from a threshold: lung is
parenchyma (labels 2 and 3) and emphysema (6). Airways (4: trachea, bronchi) are air but not
lung; vessels in the lung (7) are soft tissue and not lung; airway walls are body (1).

**What makes it measurable.** Every lung voxel is at most -700 HU before noise, every voxel of
tissue, vessel or airway wall at least -400 HU, so any threshold between about -650 and -450 HU
tells them apart. The lungs touch no face of the volume; the airway is one connected tree, open
on the top slice as on every real chest CT, and sealed from the lungs by a wall that no path
through faces, edges or corners crosses. So the lungs are exactly the dark voxels that are not
connected with a face of the volume. Emphysema is about -990 HU, healthy parenchyma about
-860 HU, and the noise (standard deviation 10 HU) takes neither across -950 HU.

Frame: LPS mm. Slices ascend towards the head, rows towards the back, columns towards the
patient's left. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from bridge.demo.anatomy import EMPHYSEMA, LABELS, LUNG, paint

__all__ = ["LABELS", "LUNG", "Patient", "Phantom", "Truth", "chest_ct", "to_datasets", "truth"]


@dataclass(frozen=True)
class Phantom:
    """hu int16 and labels uint8, both [slice, row, col]; spacing and origin in mm.

    ``spacing`` is (slice, row, col); ``origin`` is the LPS position (x, y, z) of the first
    voxel's centre.
    """

    hu: npt.NDArray[np.int16] = field(repr=False)
    labels: npt.NDArray[np.uint8] = field(repr=False)
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Truth:
    """What is in the phantom: see the module's definition of lung.

    ``laa950_percent`` is the share of emphysema labels in the lung; ``mean_density_hu`` and
    ``perc15_hu`` (15th percentile) are of the stored HU under lung labels.
    """

    lung_volume_ml: float
    mean_density_hu: float
    laa950_percent: float
    perc15_hu: float


@dataclass(frozen=True)
class Patient:
    """An invented patient: name in DICOM's form, sex "F", "M" or "O"."""

    name: str = field(default="Demo^Phantom", repr=False)
    id: str = field(default="DEMO-0001", repr=False)
    issuer: str = field(default="RADSEAL-DEMO", repr=False)
    birth_date: date = field(default=date(1958, 4, 12), repr=False)
    sex: str = field(default="O", repr=False)


def chest_ct(seed: int, slices: int = 90) -> Phantom:
    """Make the chest of one invented patient: ``slices`` axial slices over 270 mm, 256 x 256.

    Raises ValueError below 60 slices: airway walls and apices need them.
    """
    if slices < 60:
        raise ValueError("the phantom needs at least 60 slices")
    hu, labels, grid = paint(seed, slices)
    return Phantom(hu, labels, grid.spacing, grid.origin, seed)


def truth(phantom: Phantom) -> Truth:
    """Return what a perfect measurement of the phantom finds; from the label map."""
    lung = np.isin(phantom.labels, LUNG)
    inside = phantom.hu[lung].astype(np.float64)
    voxel_ml = float(np.prod(phantom.spacing)) / 1000
    emphysema = int(np.count_nonzero(phantom.labels == EMPHYSEMA))
    return Truth(
        lung_volume_ml=inside.size * voxel_ml,
        mean_density_hu=float(inside.mean()),
        laa950_percent=100 * emphysema / inside.size,
        perc15_hu=float(np.percentile(inside, 15)),
    )


def to_datasets(
    phantom: Phantom,
    *,
    uid: Callable[..., str],
    now: datetime,
    patient: Patient | None = None,
    accession: str = "DEMO-A-0001",
) -> list[Dataset]:
    """Return the phantom as CT Images (explicit little endian), lowest slice first.

    ``uid`` derives a UID from words: it is called with ("study",), ("series",), ("frame",) and
    ("instance", "17"). ``now`` is when it was "acquired". Each Dataset has its file meta
    information and can be saved or sent as it is.
    """
    patient = patient or Patient()
    at = now.astimezone(UTC)
    common = _common(phantom, uid, at, patient, accession)
    return [_image(phantom, index, common, uid) for index in range(phantom.hu.shape[0])]


def _common(
    phantom: Phantom, uid: Callable[..., str], at: datetime, patient: Patient, accession: str
) -> Dataset:
    ds = Dataset()
    day, time = at.strftime("%Y%m%d"), at.strftime("%H%M%S")
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = day
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = time
    ds.TimezoneOffsetFromUTC = "+0000"
    ds.AccessionNumber = accession
    ds.Modality = "CT"
    ds.Manufacturer = "radseal"
    ds.ManufacturerModelName = "synthetic chest"
    ds.DeviceSerialNumber = str(phantom.seed)
    ds.SoftwareVersions = "1"
    ds.InstitutionName = "radseal demonstration"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "CT chest without contrast (synthetic)"
    ds.SeriesDescription = "Chest soft kernel (synthetic)"
    ds.ProtocolName = "CHEST"
    ds.BodyPartExamined = "CHEST"
    _who(ds, patient, at)
    ds.StudyInstanceUID = uid("study")
    ds.SeriesInstanceUID = uid("series")
    ds.FrameOfReferenceUID = uid("frame")
    ds.PositionReferenceIndicator = ""
    ds.StudyID = "1"
    ds.SeriesNumber, ds.AcquisitionNumber = 2, 1
    _geometry(ds, phantom)
    return ds


def _who(ds: Dataset, patient: Patient, at: datetime) -> None:
    ds.PatientName = patient.name
    ds.PatientID = patient.id
    ds.IssuerOfPatientID = patient.issuer
    ds.PatientBirthDate = patient.birth_date.strftime("%Y%m%d")
    ds.PatientSex = patient.sex
    born = patient.birth_date
    years = at.year - born.year - ((at.month, at.day) < (born.month, born.day))
    ds.PatientAge = f"{years:03d}Y"


def _geometry(ds: Dataset, phantom: Phantom) -> None:
    ds.KVP = "120"
    ds.XRayTubeCurrent = 200
    ds.ExposureTime = 500
    ds.ConvolutionKernel = "SOFT"
    ds.PatientPosition = "HFS"
    ds.SliceThickness = f"{phantom.spacing[0]:.6g}"
    ds.SpacingBetweenSlices = f"{phantom.spacing[0]:.6g}"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [f"{phantom.spacing[1]:.6g}", f"{phantom.spacing[2]:.6g}"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = phantom.hu.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelRepresentation = 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.WindowCenter, ds.WindowWidth = "-600", "1500"


def _image(phantom: Phantom, index: int, common: Dataset, uid: Callable[..., str]) -> Dataset:
    ds = Dataset()
    ds.update(common)
    ds.SOPInstanceUID = uid("instance", str(index + 1))
    ds.InstanceNumber = index + 1
    x, y, z = phantom.origin
    z += index * phantom.spacing[0]
    ds.ImagePositionPatient = [f"{x:.6g}", f"{y:.6g}", f"{z:.6g}"]
    ds.SliceLocation = f"{z:.6g}"
    ds.PixelData = (phantom.hu[index].astype(np.int32) + 1024).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    return ds
