"""A fake modality and a fake PACS for the demo: real DICOM associations on loopback."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from bridge.errors import Refused

__all__ = ["FakePACS", "free_port", "send"]


def free_port() -> int:
    """Give a TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FakePACS:
    """A C-STORE SCP that keeps what it receives in memory."""

    def __init__(self, ae_title: str) -> None:
        self.ae_title = ae_title
        self.received: dict[str, bytes] = {}
        ae = AE(ae_title=ae_title)
        ae.supported_contexts = [
            build_context(context.abstract_syntax, [*AllTransferSyntaxes])
            for context in AllStoragePresentationContexts
            if context.abstract_syntax is not None
        ]
        ae.add_supported_context(Verification)
        server: Any = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)]
        )
        self._server = server
        self.port = int(server.server_address[1])

    def _keep(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.received[uid] = event.encoded_dataset()
        return 0x0000

    def dataset(self, sop_instance_uid: str) -> Dataset:
        """Read back an object that was received."""
        from pydicom import dcmread

        return dcmread(BytesIO(self.received[sop_instance_uid]))

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()


_PATIENCE, _TRIES = 20.0, 3


def send(datasets: Sequence[Dataset], port: int, ae_title: str, calling: str) -> None:
    """C-STORE datasets in one association; raises Refused when one is not taken.

    What gets no answer is sent again in another association, as modalities do. pynetdicom's
    reactor may take an answer that the sender waits for (it says that it is paused shortly before
    it looks for messages), and a busy disk may hold up an fsync.
    """
    left = list(datasets)
    for _ in range(_TRIES):
        left = _unanswered(left, port, ae_title, calling)
        if not left:
            return
    raise Refused("the demo's listener did not answer in time; is the disk busy?")


def _unanswered(
    datasets: Sequence[Dataset], port: int, ae_title: str, calling: str
) -> list[Dataset]:
    """Send until an answer fails to come; returns what was not acknowledged."""
    ae = AE(ae_title=calling)
    ae.dimse_timeout = _PATIENCE
    for sop_class in sorted({d.SOPClassUID for d in datasets}):
        ae.add_requested_context(sop_class)
    association = ae.associate("127.0.0.1", port, ae_title=ae_title)
    if not association.is_established:
        raise Refused("the demo's listener did not take the association")
    try:
        for number, dataset in enumerate(datasets):
            status = association.send_c_store(dataset)
            if not status:
                return list(datasets[number:])
            if status.Status != 0:
                raise Refused(f"the demo's listener refused an image: 0x{status.Status:04X}")
    finally:
        association.release()
    return []
