"""The listener loses its peer, or its life, in the middle of an object: nothing of it stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
import ward as w
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[w.Ward]:
    pacs = w.PACS()
    pacs.up()
    try:
        with w.ward(tmp_path_factory.mktemp("listener"), [pacs]) as made:
            made.serve()
            yield made
    finally:
        pacs.down()


def _large(number: int) -> Dataset:
    dataset = w.study(number)[0]
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = np.full((512, 512), number % 4096, "<u2").tobytes()
    return dataset


def _associate(ward: w.Ward) -> Any:
    ae = AE(ae_title=w.MODALITY)
    ae.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    association = ae.associate(servers.HOST, ward.port, ae_title="RADSEAL")
    assert association.is_established
    return association


def _begin(association: Any, dataset: Dataset) -> None:
    """Send the command and the first part of the dataset, and no more."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = dataset.SOPClassUID
    request.AffectedSOPInstanceUID = dataset.SOPInstanceUID
    request.DataSet = BytesIO(encode(dataset, False, True) or b"")
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    context = association.accepted_contexts[0].context_id
    for _, fragment in zip(range(5), message.encode_msg(context, 16382), strict=False):
        association.dul.send_pdu(fragment)


def _parts(ward: w.Ward) -> list[Path]:
    return list((ward.folder / "instances" / "parts").iterdir())


def _under_way(ward: w.Ward) -> bool:
    return any(part.stat().st_size > 16000 for part in _parts(ward))


def _listener(ward: w.Ward) -> int:
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            words = (status.parent / "cmdline").read_bytes().split(b"\0")
            parent = f"PPid:\t{ward.pid()}\n" in status.read_text()
        except OSError:
            continue
        if parent and b"bridge.intake.dimse" in words:
            return int(status.parent.name)
    return 0


def _taken_and_delivered(ward: w.Ward, number: int) -> None:
    """Send a whole study afterwards: the house works as if nothing had been."""
    acknowledged = w.insist(w.study(number), ward.port, until=time.monotonic() + 60)
    uid = str(w.study(number)[0].StudyInstanceUID)
    servers.wait_until(
        lambda: ward.states().get(uid) == "delivered", seconds=60, what=f"delivery of {uid}"
    )
    held = ward.held()
    assert {sop: held[sop] for sop in acknowledged} == {k: [v] for k, v in acknowledged.items()}


def test_a_killed_listener_is_started_again_and_leaves_no_part(ward: w.Ward) -> None:
    dataset = _large(1)
    association = _associate(ward)
    _begin(association, dataset)
    servers.wait_until(lambda: _under_way(ward), what="the object under way")
    first = _listener(ward)
    assert first
    os.kill(first, signal.SIGKILL)
    servers.wait_until(lambda: _listener(ward) not in {0, first}, what="another listener")
    ward.wait_ready()
    association.abort()
    assert not _parts(ward)
    assert str(dataset.SOPInstanceUID) not in ward.held()
    _taken_and_delivered(ward, 1)


@pytest.mark.parametrize(
    ("number", "break_off"),
    [
        (2, lambda association: association.abort()),
        (3, lambda association: association.dul.socket.close()),
    ],
    ids=["A-ABORT", "connection lost"],
)
def test_an_object_broken_off_leaves_no_part(
    ward: w.Ward, number: int, break_off: Callable[[Any], None]
) -> None:
    dataset = _large(number)
    association = _associate(ward)
    _begin(association, dataset)
    servers.wait_until(lambda: _under_way(ward), what="the object under way")
    listener = _listener(ward)
    break_off(association)
    servers.wait_until(lambda: not _parts(ward), what="the part gone")
    assert str(dataset.SOPInstanceUID) not in ward.held()
    assert _listener(ward) == listener
    _taken_and_delivered(ward, number)


def test_a_second_service_is_refused_and_harms_nothing_under_way(ward: w.Ward) -> None:
    association = _associate(ward)
    _begin(association, _large(4))
    servers.wait_until(lambda: _under_way(ward), what="the object under way")
    said = ward.radseal("serve", code=2)
    assert "Traceback" not in said
    assert _under_way(ward)
    association.abort()
    servers.wait_until(lambda: not _parts(ward), what="the part gone")


def test_a_listener_ends_with_the_service_that_started_it(ward: w.Ward) -> None:
    listener = _listener(ward)
    ward.kill(group=False)
    servers.wait_until(lambda: not Path(f"/proc/{listener}").exists(), what="the listener's end")
    ward.serve()
    _taken_and_delivered(ward, 5)
