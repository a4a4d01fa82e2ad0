"""The real programs that other tests lean on start, answer and end."""

from __future__ import annotations

import subprocess

import psycopg
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

pytestmark = pytest.mark.peer


@pytest.fixture
def picture(tmp_path):
    """One small Secondary Capture file."""
    ds = pydicom.Dataset()
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.1", "2.25.2", "2.25.3"
    ds.PatientID, ds.PatientName, ds.Modality = "P1", "Test^Picture", "OT"
    ds.Rows = ds.Columns = 2
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 7, 0, 1
    ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", b"\x01\x02\x03\x04"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = tmp_path / "picture.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def _send(servers, peer, path):
    storescu = servers.program("storescu", "dcmtk")
    command = [storescu, "-aec", peer.ae_title, peer.host, str(peer.port), str(path)]
    subprocess.run(command, check=True, capture_output=True)


def test_orthanc_stores_what_is_sent_and_gives_it_back(servers, orthanc, picture):
    assert orthanc.get("/instances") == []
    _send(servers, orthanc, picture)
    assert len(orthanc.files(SOPInstanceUID="2.25.1")) == 1


def test_storescp_writes_one_file_per_instance(servers, storescp, picture):
    _send(servers, storescp, picture)
    servers.wait_until(lambda: len(storescp.files()) == 1, what="one file")
    assert pydicom.dcmread(storescp.files()[0]).PatientID == "P1"


def test_postgresql_gives_an_empty_database(database_url):
    plain = database_url.replace("+psycopg", "")
    with psycopg.connect(plain) as connection:
        found = connection.execute("select count(*) from pg_tables where schemaname = 'public'")
        assert found.fetchone() == (0,)


def test_a_server_can_go_down_and_come_back_with_its_data(servers, picture, tmp_path):
    port = servers.free_port()
    try:
        with servers.storescp(port=port, folder=tmp_path / "scp") as peer:
            _send(servers, peer, picture)
    except servers.MissingError as missing:
        pytest.skip(str(missing))
    assert not servers.echoes("PACS", port)
    with servers.storescp(port=port, folder=tmp_path / "scp") as peer:
        assert len(peer.files()) == 1


def test_a_missing_program_names_its_package(servers):
    with pytest.raises(servers.MissingError, match="apt-get install some-package"):
        servers.program("radseal-no-such-program", "some-package")


def test_two_pacs_can_run_at_once(servers, start, picture):
    one, two = start("orthanc", ae_title="ONE"), start("storescp", ae_title="TWO")
    _send(servers, one, picture)
    _send(servers, two, picture)
    assert len(one.get("/instances")) == 1
    servers.wait_until(lambda: len(two.files()) == 1, what="one file")
