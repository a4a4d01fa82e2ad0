"""A PACS that does not take Comprehensive 3D SR gets the same report in an older class."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from io import BytesIO

import house
import pytest
import validators
from pydicom import dcmread
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt

from bridge.demo import phantom
from bridge.report.identity import derived_uid

pytestmark = pytest.mark.peer


class OldPACS:
    """A PACS that takes only these SOP classes."""

    def __init__(self, *classes: UID) -> None:
        self.received: list[bytes] = []
        ae = AE("OLDPACS")
        for one in classes:
            ae.add_supported_context(one, ExplicitVRLittleEndian)
        self.server = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self.keep)]
        )
        self.port = self.server.server_address[1]

    def keep(self, event: evt.Event) -> int:
        self.received.append(event.encoded_dataset())
        return 0x0000


@pytest.mark.parametrize("newest", [ComprehensiveSRStorage, EnhancedSRStorage])
def test_the_report_arrives_in_the_newest_class_that_the_pacs_takes(newest, tmp_path):
    pacs = OldPACS(newest, SegmentationStorage, SecondaryCaptureImageStorage)
    to = house.destination("old", "OLDPACS", pacs.port)
    made = phantom.to_datasets(
        phantom.chest_ct(3, 60), uid=lambda *p: derived_uid("fallback", *p), now=datetime.now(UTC)
    )
    files = []
    for number, dataset in enumerate(made):
        files.append(tmp_path / f"{number:03d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    with house.served(destinations=[to], quiet_seconds=1) as served:
        served.radseal("model", "approve", "org.radseal.ct-lung-density", "--by", "second")
        served.radseal("model", "activate", "org.radseal.ct-lung-density", "--by", "second")
        served.send(files)
        told = served.until(str(made[0].StudyInstanceUID), "delivered")
        ledger, keys = served.folder / "ledger", served.folder / "ledger.vkey"
        verified = subprocess.run(
            [sys.executable, "-m", "ledger", "verify", str(ledger), "--vkey", str(keys)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    pacs.server.shutdown()
    assert verified.returncode == 0, verified.stdout
    reports = [d for d in (dcmread(BytesIO(b)) for b in pacs.received) if d.Modality == "SR"]
    assert [d.SOPClassUID for d in reports] == [newest]
    assert len(pacs.received) == 3
    assert "fallback" in house.codes(told)
    composed = [w for w in house.words(told, "result.composed") if w.startswith("sr")]
    assert len(composed) == (2 if newest == ComprehensiveSRStorage else 3)
    path = tmp_path / "report.dcm"
    reports[0].save_as(path, enforce_file_format=True)
    assert validators.dciodvfy_errors(path) == []
