"""The phantom: its truth is in the label map, and an honest measurement finds it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from bridge.demo.anatomy import AIRWAY, BODY, BONE, EMPHYSEMA, LEFT, OUTSIDE, RIGHT, VESSEL
from bridge.demo.phantom import LABELS, LUNG, Patient, Phantom, chest_ct, to_datasets, truth

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
ANY_NEIGHBOUR = np.ones((3, 3, 3), bool)


def uid(*parts: str) -> str:
    return f"2.25.{int(hashlib.sha256('/'.join(parts).encode()).hexdigest()[:30], 16)}"


@pytest.fixture(scope="module")
def phantom():
    return chest_ct(20260101)


@pytest.fixture(scope="module")
def datasets(phantom):
    return to_datasets(phantom, uid=uid, now=NOW)


def dark_and_enclosed(phantom: Phantom, threshold: float) -> np.ndarray:
    """Find the lungs as the module says: dark, and not connected with a face of the volume."""
    parts, _ = ndimage.label(phantom.hu < threshold, ANY_NEIGHBOUR)
    faces = [np.take(parts, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return (parts > 0) & ~np.isin(parts, np.unique(np.concatenate(faces)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_measurement_without_the_labels_finds_the_truth(seed):
    phantom = chest_ct(seed, slices=60)
    want = truth(phantom)
    for threshold in (-650, -600, -450):
        lung = dark_and_enclosed(phantom, threshold)
        inside = phantom.hu[lung].astype(float)
        volume = inside.size * np.prod(phantom.spacing) / 1000
        assert volume == pytest.approx(want.lung_volume_ml, rel=0.001)
        assert inside.mean() == pytest.approx(want.mean_density_hu, abs=0.5)
        assert 100 * (inside < -950).mean() == pytest.approx(want.laa950_percent, abs=0.1)
        assert np.percentile(inside, 15) == pytest.approx(want.perc15_hu, abs=1)


def test_the_truth_is_that_of_a_person_with_emphysema(phantom):
    want = truth(phantom)
    assert 3000 < want.lung_volume_ml < 6500
    assert 8 < want.laa950_percent < 12
    assert -880 < want.mean_density_hu < -840
    assert -920 < want.perc15_hu < -860


def test_the_truth_by_hand():
    labels = np.array([[[2, 3, 6, 6], [4, 7, 1, 0]]], np.uint8)
    hu = np.array([[[-800, -820, -990, -980], [-1000, 40, 50, -1000]]], np.int16)
    found = truth(Phantom(hu, labels, (10.0, 10.0, 10.0), (0, 0, 0), 0))
    assert found.lung_volume_ml == pytest.approx(4)
    assert found.mean_density_hu == pytest.approx(-897.5)
    assert found.laa950_percent == pytest.approx(50)
    assert found.perc15_hu == pytest.approx(-985.5)


def test_the_same_seed_gives_the_same_chest(phantom):
    again = chest_ct(20260101)
    assert np.array_equal(again.hu, phantom.hu)
    assert np.array_equal(again.labels, phantom.labels)
    assert not np.array_equal(chest_ct(2, 60).labels, chest_ct(3, 60).labels)


def test_shape_types_and_labels(phantom):
    assert phantom.hu.dtype == np.int16
    assert phantom.labels.dtype == np.uint8
    assert phantom.hu.shape == phantom.labels.shape == (90, 256, 256)
    assert set(np.unique(phantom.labels)) == set(LABELS)
    assert phantom.spacing == (3.0, 1.45, 1.45)
    assert chest_ct(0, 100).spacing[0] == pytest.approx(2.7)
    with pytest.raises(ValueError, match="60"):
        chest_ct(0, 59)


def test_lungs_touch_no_face_and_no_airway(phantom):
    lung = np.isin(phantom.labels, LUNG)
    for axis in range(3):
        for end in (0, -1):
            assert not np.take(lung, end, axis).any()
    airway = phantom.labels == AIRWAY
    around = ndimage.binary_dilation(airway, ANY_NEIGHBOUR) & ~airway
    assert not (around & np.isin(phantom.labels, (*LUNG, OUTSIDE))).any()
    assert ndimage.label(airway)[1] == 1
    assert airway[-1].any()


def test_right_is_right(phantom):
    right = np.argwhere(phantom.labels == RIGHT).mean(axis=0)
    left = np.argwhere(phantom.labels == LEFT).mean(axis=0)
    spine = np.argwhere(phantom.labels[:, :, 120:136] == BONE).mean(axis=0)
    assert right[2] < 127 < left[2]
    assert spine[1] > 127


def test_values_keep_to_their_side(phantom):
    hu, labels = phantom.hu, phantom.labels
    assert hu[np.isin(labels, LUNG)].max() < -640
    assert hu[np.isin(labels, (BODY, BONE, VESSEL))].min() > -460
    assert (hu[labels == EMPHYSEMA] < -950).mean() > 0.999
    assert (hu[np.isin(labels, (RIGHT, LEFT))] >= -950).mean() > 0.9999


def test_datasets_hold_the_phantom(phantom, datasets):
    assert len(datasets) == 90
    buffer = BytesIO()
    datasets[40].save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    ds = pydicom.dcmread(buffer)
    pixels = ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
    assert np.array_equal(pixels, phantom.hu[40])
    assert (ds.Modality, ds.TimezoneOffsetFromUTC, ds.PatientAge) == ("CT", "+0000", "067Y")
    assert ds.StudyDate == "20260203"
    assert [float(v) for v in ds.ImagePositionPatient] == [-184.875, -184.875, -150.0]
    assert len({one.SOPInstanceUID for one in datasets}) == 90
    assert len({one.SeriesInstanceUID for one in datasets}) == 1
    heights = [float(one.ImagePositionPatient[2]) for one in datasets]
    assert np.allclose(np.diff(heights), phantom.spacing[0])


def test_another_patient_and_names_in_any_script(phantom):
    patient = Patient(name="Müller^Ælfrēd=山田^太郎", id="X", sex="F")
    ds = to_datasets(phantom, uid=uid, now=NOW, patient=patient, accession="A1")[0]
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    read = pydicom.dcmread(buffer)
    assert str(read.PatientName) == patient.name
    assert (read.PatientID, read.PatientSex, read.AccessionNumber) == ("X", "F", "A1")
    assert "Müller" not in repr(patient)


@pytest.mark.peer
def test_dciodvfy_finds_no_error(datasets, tmp_path):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    for index in (0, 45, 89):
        path = tmp_path / f"{index}.dcm"
        datasets[index].save_as(path, enforce_file_format=True)
        done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stdout + done.stderr
        assert done.returncode == 0
