"""The disk is full: nothing is acknowledged that is not kept, and with space all goes on by itself.

The disk is a tmpfs of some megabytes that the test mounts; without the right to do so, it skips.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import servers
import ward as w
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


@contextmanager
def _disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small disk at this folder; unmount it on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command: no small disk can be made")
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _fill(disk: Path) -> Path:
    """Write until nothing more fits; returns the ballast."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    assert shutil.disk_usage(disk).free < 4096
    return ballast


@pytest.fixture
def pacs() -> Iterator[w.PACS]:
    made = w.PACS()
    made.up()
    yield made
    made.down()


def _uid(number: int) -> str:
    return str(w.study(number)[0].StudyInstanceUID)


def _delivered(ward: w.Ward, *numbers: int, seconds: float = 120) -> None:
    wanted = {_uid(number): "delivered" for number in numbers}
    try:
        servers.wait_until(lambda: ward.states() == wanted, seconds=seconds, what="delivery")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {ward.states()}\n{ward.last_words()}") from None


def _try(ward: w.Ward, number: int) -> list[int | None]:
    """Send each image of a study once; the statuses heard, None for no answer."""
    ae = AE(ae_title=w.MODALITY)
    ae.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    heard: list[int | None] = []
    for dataset in w.study(number):
        association = ae.associate(servers.HOST, ward.port, ae_title="RADSEAL")
        status = association.send_c_store(dataset) if association.is_established else None
        heard.append(int(status.Status) if status else None)
        if association.is_established:
            association.release()
    return heard


def _settle(ward: w.Ward, pacs: w.PACS, acknowledged: dict[str, str], studies: int) -> None:
    """Compare what was acknowledged, held, delivered and written into the log."""
    assert ward.held() == {uid: [digest] for uid, digest in acknowledged.items()}
    assert {len(uids) for uids in pacs.of_study.values()} == {w.KINDS}
    assert {uid: set(digests) for uid, digests in pacs.received.items()} == {
        uid: {digest} for uid, digest in ward.artifacts().items()
    }
    assert not list((ward.folder / "instances" / "parts").iterdir())
    ward.stop()
    report = ward.verify()
    assert report.counts["study.closed"] == studies
    assert report.counts.get("inference.failed", 0) == 0
    assert not report.open_studies
    assert ward.quiet_log(), ward.last_words()


def test_a_full_disk_refuses_and_recovers_by_itself(tmp_path: Path, pacs: w.PACS) -> None:
    with (
        _disk(tmp_path / "disk", 48) as disk,
        w.ward(tmp_path, [pacs], site_folder=disk / "site") as ward,
    ):
        ward.serve()
        until = time.monotonic() + 240
        acknowledged = w.insist(w.study(0), ward.port, until=until)
        _delivered(ward, 0)
        ballast = _fill(disk)
        assert not [status for status in _try(ward, 1) if status not in {None, 0xA700}]
        time.sleep(5)
        assert ward.alive()
        assert set(ward.held()) == set(acknowledged)
        ballast.unlink()
        acknowledged |= w.insist(w.study(1), ward.port, until=until)
        _delivered(ward, 0, 1)
        _settle(ward, pacs, acknowledged, studies=2)


def test_a_disk_that_fills_in_the_midst_of_work_loses_and_fails_nothing(
    tmp_path: Path, pacs: w.PACS
) -> None:
    with (
        _disk(tmp_path / "disk", 48) as disk,
        w.ward(tmp_path, [pacs], site_folder=disk / "site") as ward,
    ):
        ward.serve()
        until = time.monotonic() + 240
        acknowledged: dict[str, str] = {}
        for number in range(4):
            acknowledged |= w.insist(w.study(number), ward.port, until=until)
        for pause in (1.0, 2.5, 4.0):
            ballast = _fill(disk)
            time.sleep(4)
            assert ward.alive()
            ballast.unlink()
            time.sleep(pause)
        _delivered(ward, *range(4), seconds=180)
        _settle(ward, pacs, acknowledged, studies=4)


def test_nothing_leaves_the_house_while_the_ledger_has_no_room(
    tmp_path: Path, pacs: w.PACS
) -> None:
    with w.ward(tmp_path, [pacs]) as ward:
        ledger = ward.folder / "ledger"
        aside = shutil.copytree(ledger, tmp_path / "aside")
        with _disk(ledger, 1):
            shutil.copytree(aside, ledger, dirs_exist_ok=True)
            ward.serve()
            ballast = _fill(ledger)
            acknowledged = w.insist(w.study(0), ward.port, until=time.monotonic() + 60)
            servers.wait_until(
                lambda: len(ward.artifacts()) == w.KINDS, seconds=60, what="the composing"
            )
            time.sleep(4)
            assert not pacs.received
            assert not ward.ready()
            assert ward.alive()
            ballast.unlink()
            _delivered(ward, 0)
            servers.wait_until(ward.ready, what="readiness")
            _settle(ward, pacs, acknowledged, studies=1)
            ward.close()


def test_below_the_watermark_senders_are_turned_away_not_lost(tmp_path: Path, pacs: w.PACS) -> None:
    with (
        _disk(tmp_path / "disk", 64) as disk,
        w.ward(tmp_path, [pacs], site_folder=disk / "site", watermark_mb=16) as ward,
    ):
        ward.serve()
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - (8 << 20)))
        assert _try(ward, 0) == [None] * 3
        assert not ward.ready()
        ballast.unlink()
        acknowledged = w.insist(w.study(0), ward.port, until=time.monotonic() + 60)
        _delivered(ward, 0)
        _settle(ward, pacs, acknowledged, studies=1)
