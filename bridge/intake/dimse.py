"""The C-STORE SCP: bytes to disk as they came, fsync, then Success (design §4.1).

A process of its own, without a database. It decodes no dataset: the peer's bytes
go chunk by chunk into a part file, which is fsynced, renamed into the inbox under
a name of ours, and made durable there before the peer hears 0x0000. AE titles
and times are in the file's name, so that the index can be rebuilt from the files.

A crash before the rename leaves a part, and the peer has heard nothing: it sends
again; the part is removed when its connection ends, or before the next listener
starts. A crash after the rename and before the response leaves a file that the
peer sends once more; the indexer knows it by its digest.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, _config, dimse_messages, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from bridge import ambient, logs, site
from bridge.files import Files, arrival_name, fsync_folder

__all__ = ["Listener", "main"]

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000


class _Part:
    """An object on its way to the disk, in the place of pynetdicom's temporary file.

    A write that fails is kept for the answer: raised where pynetdicom writes, it would end the
    thread that reads the connection and leave the peer waiting on it.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.file = self  # what pynetdicom flushes
        self.owner = threading.current_thread()  # the one that reads this connection
        self.error: OSError | None = None
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            self.error = error

    def write(self, data: bytes) -> int:
        """Write all of it, or remember why not and give the space back."""
        view = memoryview(data)
        try:
            while view and self.error is None:
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            self.error = error
            os.ftruncate(self._handle, 0)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered here."""

    def settle(self) -> None:
        """Make the bytes durable; raises OSError, also for a write that failed before."""
        if self.error is not None:
            raise self.error
        os.fsync(self._handle)
        self.close()

    def close(self) -> None:
        """Give the handle back."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def discard(self) -> None:
        """Leave no trace."""
        self.close()
        Path(self.name).unlink(missing_ok=True)


class Listener:
    """One C-STORE SCP over a site's inbox."""

    def __init__(self, settings: site.Site, files: Files) -> None:
        self._settings = settings
        self._files = files
        self._numbers = itertools.count()
        self._pid = os.getpid()
        self._log = logs.get()
        self._server: Any = None
        self._parts: set[_Part] = set()

    def start(self) -> int:
        """Begin to listen; returns the port. Raises OSError when it is taken."""
        # Chunked: memory stays flat however large an object is. Unrestricted: every storage
        # SOP class, private ones included, is taken and kept as sent.
        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        _config.LOG_HANDLER_LEVEL = "none"
        setattr(dimse_messages, "NamedTemporaryFile", self._part)  # noqa: B010  (an import of theirs)
        listener = self._settings.listener
        ae = AE(ae_title=listener.ae_title)
        ae.supported_contexts = [
            build_context(cx.abstract_syntax, [*AllTransferSyntaxes])
            for cx in AllStoragePresentationContexts
            if cx.abstract_syntax is not None
        ]
        ae.add_supported_context(Verification)
        ae.maximum_associations = 64
        ae.maximum_pdu_size = 0
        ae.network_timeout = 120
        self._server = ae.start_server(
            (listener.host, listener.port),
            block=False,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, self._on_open),
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_C_ECHO, lambda _event: SUCCESS),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_CONN_CLOSE, self._on_close),
            ],
        )
        self._files.attention.pay(ambient.now())
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening; associations are aborted, unacknowledged objects are the sender's."""
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()
        self._files.attention.cease()

    def _part(self, **_: object) -> _Part:
        part = _Part(self._files.parts / f"{self._pid}-{next(self._numbers)}")
        self._parts.add(part)
        return part

    def _on_close(self, event: Any) -> None:
        """Remove what this connection began and did not finish."""
        for part in [one for one in tuple(self._parts) if one.owner is event.assoc.dul]:
            self._parts.discard(part)
            part.discard()

    def _on_open(self, event: Any) -> None:
        raw = event.assoc.dul.socket.socket
        # Without it sender and listener wait 40 ms for each other's delayed ACKs.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_requested(self, event: Any) -> None:
        requestor = event.assoc.requestor
        if self._files.is_full():
            self._files.attention.pay(ambient.now())
            self._log.error("association.refused", code="disk below its watermark")
            # Rejected transient, service provider (presentation), local limit exceeded.
            event.assoc.acse.send_reject(0x02, 0x03, 0x02)
            event.assoc.kill()
            return
        # pynetdicom sets requestor.ae_title only after this event.
        source = self._settings.source_of(str(requestor.primitive.calling_ae_title))
        if source is None:
            why = "not listed" if self._settings.listener.accept == "listed" else ""
        else:
            elsewhere = source.host and not _same_host(source.host, requestor.address)
            why = "address" if elsewhere else ""
        if why:
            named = None if source is None else source.name
            self._log.error("association.refused", code=why, source=named)
            # Rejected permanent, service user, calling AE title not recognized.
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)
            event.assoc.kill()

    def _on_store(self, event: Any) -> int:
        part: _Part | None = event.request._dataset_file
        if part is None:  # a C-STORE-RQ that announces no dataset
            self._log.error("store.refused", code="no dataset")
            return CANNOT_UNDERSTAND
        self._parts.discard(part)
        try:
            if self._files.is_full():
                raise OSError(errno.ENOSPC, "disk below its watermark")
            part.settle()
            name = arrival_name(
                _now_ns(), self._pid, next(self._numbers), str(event.assoc.requestor.ae_title)
            )
            Path(part.name).rename(self._files.inbox / f"{name}.dcm")
            fsync_folder(self._files.inbox)
        except OSError as error:
            part.discard()
            self._files.attention.pay(ambient.now())
            self._log.error("store.failed", code=error.strerror)
            return OUT_OF_RESOURCES  # ours, whatever it is: the sender shall try again
        # A crash from here on loses nothing: the file is durable under its final name.
        return SUCCESS


def _now_ns() -> int:
    return int(ambient.now().timestamp() * 1e9)


def _same_host(expected: str, address: str) -> bool:
    try:
        wanted = ipaddress.ip_address(expected)
    except ValueError:
        return True  # a host name: DNS decides elsewhere, the AE title decides here
    return wanted == ipaddress.ip_address(address)


def _end_with_parent(stop: Callable[[], None]) -> None:
    # Not through sys.stdin: its lock, held by this thread, would be fatal at shutdown.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop()


def main() -> None:
    """Listen for the site named on the command line until standard input is closed."""
    logs.setup()
    settings = site.read(Path(sys.argv[1]))
    files = Files(settings.folder, settings.instances, settings.storage.watermark_mb)
    listener = Listener(settings, files)
    try:
        port = listener.start()
    except OSError as error:
        sys.stderr.write(
            f"the DICOM port {settings.listener.port} cannot be opened: {error.strerror}; "
            "choose another [listener] port or end the program that holds it\n"
        )
        raise SystemExit(1) from None
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    sys.stdout.write(f"ready {port}\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_parent, args=(ended.set,), daemon=True).start()
    ended.wait()
    listener.stop()


if __name__ == "__main__":
    main()
