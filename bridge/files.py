"""The only address of stored bytes: the inbox, instances, artifacts, work folders.

A name never comes from outside: UIDs are hashed (`uid_name`) before they become
part of a path. Every write is fsynced, file and folder, before it is called done.

    instances/inbox/ARRIVAL.dcm      what the listener acknowledged and nobody has indexed yet
    instances/listening              since when the listener takes images, locked while it does
    instances/ab/HASH/ARRIVAL.dcm    the same file, indexed, in its study's folder
    artifacts/STUDY/HASH.dcm         what we composed; its leaf is about these bytes
    artifacts/STUDY/HASH.sent.dcm    a copy with its receipt inside, byte for byte as it is sent
    work/ROUTE/                      decoded pixels and outcomes of runs, can be made again
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from bridge.errors import StorageFull
from bridge.study import uid_name
from bridge.turns import Turns

__all__ = ["Attention", "Files", "arrival_name", "calling_ae_of", "fsync_folder", "received_ns_of"]


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def arrival_name(received_ns: int, pid: int, number: int, calling_ae: str) -> str:
    """Name an arrival: when (ns since 1970), by which process, from which AE title (hex)."""
    ae = calling_ae.strip()[:16].encode("utf-8", "replace").hex() or "00"
    return f"{received_ns:020d}-{pid}-{number}-{ae}"


def received_ns_of(arrival: str) -> int:
    """Read back when a file arrived; 0 if the name is not ours."""
    first = arrival.split("-", 1)[0]
    return int(first) if first.isdigit() else 0


def calling_ae_of(arrival: str) -> str:
    """Read back from which AE title a file came; empty if the name is not ours."""
    parts = arrival.split("-")
    try:
        return bytes.fromhex(parts[3]).decode("utf-8", "replace") if len(parts) == 4 else ""
    except ValueError:
        return ""


class Attention:
    """Since when images can come in: a file that the listener holds locked while it listens.

    Silence says that a study is complete only as long as somebody listens and turns nobody away;
    a worker in another process must know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def pay(self, now: datetime) -> None:
        """Say that from now on images can come in; for the listener, once it listens.

        Said again when a sender was turned away: the silence that follows begins anew.
        """
        if self._handle is None:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        os.pwrite(self._handle, now.isoformat().encode().ljust(40), 0)

    def cease(self) -> None:
        """Say that nothing can come in any more."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def since(self, unknown: datetime) -> datetime | None:
        """Since when; None while nobody listens, `unknown` where nobody ever did."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return unknown
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return datetime.fromisoformat(os.pread(handle, 40, 0).decode().strip())
        else:
            return None
        finally:
            os.close(handle)


class Files:
    """A site's stored bytes; `watermark_mb` is what must stay free on the disk."""

    def __init__(self, folder: Path, instances: Path, watermark_mb: int) -> None:
        self.instances = instances
        self.inbox = instances / "inbox"
        self.parts = instances / "parts"
        self.artifacts = folder / "artifacts"
        self.work = folder / "work"
        self.attention = Attention(instances / "listening")
        self.turns = Turns(folder / ".locks")
        self._watermark_mb = watermark_mb

    def prepare(self) -> None:
        """Make the folders."""
        for path in (self.instances, self.inbox, self.parts, self.artifacts, self.work):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def clear_parts(self) -> None:
        """Remove what a listener that died left unfinished; only while none listens."""
        for part in self.parts.iterdir():
            part.unlink(missing_ok=True)

    def is_full(self) -> bool:
        """Whether the disk is below its watermark."""
        return shutil.disk_usage(self.instances).free < self._watermark_mb * 1024 * 1024

    def arrived(self, limit: int) -> list[Path]:
        """List files that were acknowledged and not indexed, oldest first."""
        names = sorted(
            entry.name for entry in os.scandir(self.inbox) if entry.name.endswith(".dcm")
        )
        return [self.inbox / name for name in names[:limit]]

    def waiting(self) -> int:
        """Count files that wait for the indexer."""
        return sum(1 for entry in os.scandir(self.inbox) if entry.name.endswith(".dcm"))

    def instance(self, study_instance_uid: str, arrival: str) -> Path:
        """Where an indexed instance lies."""
        name = uid_name(study_instance_uid)
        return self.instances / name[:2] / name / f"{arrival}.dcm"

    def settle(self, arrivals: Iterator[tuple[Path, str]]) -> None:
        """Link files from the inbox into the folders of their studies (path, StudyInstanceUID).

        The inbox keeps its names until `clear`, so that a crash before the commit of the
        rows finds them there again.
        """
        touched: set[Path] = set()
        for path, study_instance_uid in arrivals:
            target = self.instance(study_instance_uid, path.stem)
            touched.add(target.parent)  # also where a pass that crashed has linked it before
            if target.exists():
                continue
            if not target.parent.exists():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                touched.update((target.parent.parent, self.instances))
            os.link(path, target)
        for folder in touched:
            fsync_folder(folder)

    def clear(self, paths: list[Path]) -> None:
        """Take indexed files out of the inbox."""
        for path in paths:
            path.unlink(missing_ok=True)

    def drop(self, study_instance_uid: str, arrival: str) -> None:
        """Remove a copy that said nothing new (a duplicate, a result of ours)."""
        self.instance(study_instance_uid, arrival).unlink(missing_ok=True)

    def artifact(self, study_id: str, sop_instance_uid: str) -> Path:
        """Where an artifact lies."""
        return self.artifacts / study_id / f"{uid_name(sop_instance_uid)}.dcm"

    def keep_artifact(self, study_id: str, sop_instance_uid: str, data: bytes) -> Path:
        """Write an artifact durably; bytes that are there already stand (design §4b).

        Raises StorageFull when the disk is full.
        """
        return self._keep(self.artifact(study_id, sop_instance_uid), data)

    def stamped(self, study_id: str, sop_instance_uid: str) -> Path:
        """Where the copy of an artifact lies that carries its receipt, once it was made."""
        return self.artifact(study_id, sop_instance_uid).with_suffix(".sent.dcm")

    def keep_stamped(self, study_id: str, sop_instance_uid: str, data: bytes) -> Path:
        """Write the copy with the receipt durably; the first one stands, for every destination.

        Raises StorageFull when the disk is full.
        """
        return self._keep(self.stamped(study_id, sop_instance_uid), data)

    def as_sent(self, study_id: str, sop_instance_uid: str) -> Path:
        """Where the bytes lie that leave the house: with the receipt, if it was inserted yet."""
        stamped = self.stamped(study_id, sop_instance_uid)
        return stamped if stamped.exists() else self.artifact(study_id, sop_instance_uid)

    def _keep(self, target: Path, data: bytes) -> Path:
        """Write a file that is never replaced, durable with its name; of two writers one wins."""
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(
                dir=target.parent, prefix=f"{target.stem}.", suffix=".part"
            ) as part:
                try:
                    part.write(data)
                    part.flush()
                    os.fsync(part.fileno())
                    with suppress(FileExistsError):
                        os.link(part.name, target)
                except OSError as error:
                    words = f"an artifact could not be written: {error.strerror}"
                    raise StorageFull(words) from error
        # Also what is there already: whoever wrote it may have stopped before this.
        fsync_folder(target.parent)
        fsync_folder(self.artifacts)
        return target

    def erase_study(self, study_instance_uid: str, study_id: str) -> None:
        """Unlink every file of a study, received and composed; the blocks are the disk's to reuse.

        May be repeated. A drive that spreads its writes (flash) may keep copies of old blocks.
        """
        _erase(self.instance(study_instance_uid, "").parent)
        _erase(self.artifacts / study_id)

    def erase_arrival(self, study_instance_uid: str, arrival: str) -> None:
        """Unlink one received file, indexed or not."""
        for path in (self.instance(study_instance_uid, arrival), self.inbox / f"{arrival}.dcm"):
            if path.exists():
                path.unlink()
                fsync_folder(path.parent)

    def erase_artifact(self, study_id: str, sop_instance_uid: str) -> None:
        """Unlink what was composed under this UID, and the copies made of it."""
        folder = self.artifacts / study_id
        for path in folder.glob(f"{uid_name(sop_instance_uid)}*"):
            path.unlink()
        if folder.exists():
            fsync_folder(folder)

    def erase_run(self, run_id: str) -> None:
        """Unlink a run's intermediate files."""
        _erase(self.work / run_id)

    def run_folder(self, run_id: str) -> Path:
        """Give a folder for a run's intermediate files."""
        path = self.work / run_id
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def drop_run_folder(self, run_id: str) -> None:
        """Remove a run's intermediate files; they can be made again."""
        shutil.rmtree(self.work / run_id, ignore_errors=True)


def _erase(folder: Path) -> None:
    """Remove a folder with all in it, durably; none is fine."""
    if folder.exists():
        shutil.rmtree(folder)
        fsync_folder(folder.parent)
