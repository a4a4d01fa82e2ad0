"""A stranger with nothing but `cryptography` and the ledger folder finds every flipped byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
import ward as w

from bridge.engine import EngineClient
from bridge.home import open_rooms, publish
from ledger.tiles import WIDTH

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

# What `pip install cryptography` brings along.
_ALONE = ("cryptography", "cffi", "pycparser", "_cffi_backend*", "typing_extensions.py")


@dataclass(frozen=True)
class Stranger:
    """A folder with a copy of ledger/ and a Python that sees nothing else of ours."""

    folder: Path

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-E", "-s", *words],
            cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def verify(self, log: Path) -> subprocess.CompletedProcess[str]:
        keys = str(log.parent / "ledger.vkey")
        return self.python("-m", "ledger", "verify", str(log), "--vkey", keys)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Stranger:
    folder = tmp_path_factory.mktemp("stranger")
    packages = Path(sysconfig.get_paths()["platlib"])
    for pattern in _ALONE:
        for found in packages.glob(pattern):
            (folder / found.name).symlink_to(found)
    shutil.copytree(root / "ledger", folder / "ledger", ignore=shutil.ignore_patterns("__py*"))
    made = Stranger(folder)
    assert made.python("-c", "import cryptography").returncode == 0
    for absent in ("bridge", "models", "pydicom", "sqlalchemy", "numpy"):
        assert made.python("-c", f"import {absent}").returncode == 1
    return made


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log of a site that read a study, grown past a full tile."""
    place, pacs = tmp_path_factory.mktemp("tamper"), w.PACS()
    pacs.up()
    try:
        with w.ward(place, [pacs]) as ward:
            ward.serve()
            w.insist(w.study(0), ward.port, until=time.monotonic() + 60)
            servers.wait_until(
                lambda: list(ward.states().values()) == ["delivered"], seconds=60, what="delivery"
            )
            assert ward.stop() == 0
            _grow(ward)
            yield ward.folder / "ledger"
    finally:
        pacs.down()


def _grow(ward: w.Ward) -> None:
    with EngineClient(ward.settings.database_url) as counter:
        rooms = open_rooms(ward.settings, counter)
        subject = rooms.vault.subject("SOAK", "P99999")
        chain = rooms.record.chain(subject.ref, "2.25.99999")
        for number in range(WIDTH + 10):
            received = rooms.record.say(
                "study.received", f"received/tamper/{number}",
                {"source": "modality", "protocol": "C-STORE", "generation": 1, "instances": 1,
                 "series": 1, "root": rooms.record.text(bytes(32))},
                chain=chain,
            )  # fmt: skip
            if number % 100 == 0:
                publish(rooms)
        rooms.record.say(
            "study.closed", "closed/tamper",
            {"outcome": "unwanted", "generation": 1, "counts": {"routes": 0}},
            chain=chain, refs=[("study.received", received)],
        )  # fmt: skip
        publish(rooms)
        rooms.database.dispose()


def _flipped(log: Path, name: str, place: int) -> Iterator[Path]:
    copy = log.parent / "copy"
    shutil.copytree(log.parent, copy, ignore=shutil.ignore_patterns("copy", "models", "*.db*"))
    try:
        path = copy / "ledger" / name
        data = bytearray(path.read_bytes())
        data[place] ^= 0x01
        path.write_bytes(data)
        yield copy / "ledger"
    finally:
        shutil.rmtree(copy)


def test_an_honest_log_is_accepted_with_cryptography_alone(stranger: Stranger, log: Path) -> None:
    done = stranger.verify(log)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("OK soak.radseal.example/log: ")


def test_a_flipped_byte_in_any_tile_is_refused_and_named(stranger: Stranger, log: Path) -> None:
    names = [path.relative_to(log).as_posix() for path in (log / "tile").rglob("*")
             if path.is_file()]  # fmt: skip
    assert {name.split("/")[1] for name in names} == {"0", "1", "entries"}
    for name in sorted(names):
        size = (log / name).stat().st_size
        for place in {0, size // 2, size - 1}:
            for copy in _flipped(log, name, place):
                done = stranger.verify(copy)
                last = (done.stdout.splitlines() or [done.stderr])[-1]
                assert done.returncode == 1, (name, place, last)
                assert last.startswith(f"FAIL {name}: "), (name, place, last)


def test_a_flipped_byte_in_the_checkpoint_is_refused_and_named(
    stranger: Stranger, log: Path
) -> None:
    text = (log / "checkpoint").read_bytes()
    signed = text.index(b"\n\n") + 1
    lines = [0, *(i + 1 for i, byte in enumerate(text[: signed - 1]) if byte == 0x0A)]
    assert len(lines) == 3  # origin, size, root
    for place in [*lines, signed - 1, signed - 2, text.index(b"+", signed), len(text) - 40]:
        for copy in _flipped(log, "checkpoint", place):
            done = stranger.verify(copy)
            last = (done.stdout.splitlines() or [done.stderr])[-1]
            assert done.returncode == 1, (place, last)
            assert last.startswith("FAIL checkpoint: "), (place, last)


def test_a_missing_tile_is_refused_and_named(stranger: Stranger, log: Path) -> None:
    name = "tile/0/000"
    for copy in _flipped(log, name, 0):
        (copy / name).unlink()
        done = stranger.verify(copy)
        assert done.returncode == 1
        assert f"FAIL {name}: is missing" in done.stdout
