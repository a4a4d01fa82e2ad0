"""The ledger's speed: durable appends, proofs, and what the disk allows.

    python tests/benchmarks/log.py
    python tests/benchmarks/log.py --seconds 2 --sizes 1000000 --store sqlite --json out.json

Appends: threads that each call `Log.append` and wait, while one more thread publishes a signed
checkpoint every 200 ms, as `radseal serve` does. What an append waits for is the disk, so the
disk's own latency stands above the table. Pipelined: 512 leaves in one transaction, as callers
that do not wait would be served. Proofs: `Log.proof` of random leaves, from the query index
(SQLite at 1 M rows; above, a stand-in that knows the index) and the tiles, verified before it
is given; the page cache is warm. `tests/benchmarks/audit.py` measures the audit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import audit
import paper_log as paper
import servers
import tall_log as tall
from intake import machine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ledger import merkle
from ledger.log import Log, open_log
from ledger.sequencer import Sequencer
from ledger.store import Row, SqliteStore

NOW = datetime(2026, 1, 2, tzinfo=UTC)
REACH = {
    "append, 1 writer": 2_000, "append, 16 writers": 8_000, "pipelined": 30_000,
    "proof p99": 2.0, "ack p99": 10.0,
}  # fmt: skip
INDEXED = 1_000_000
"""Above this many rows the query index is a stand-in: filling a real one takes an hour."""


@dataclass
class Result:
    """One line: what was measured, how often a second, and the two latencies in ms."""

    what: str
    store: str
    rate: float
    p50: float
    p99: float
    reach: str = ""


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds."""
    if len(seconds) < 2:
        return (seconds[0] * 1000,) * 2
    marks = statistics.quantiles(seconds, n=100, method="inclusive")
    return marks[49] * 1000, marks[98] * 1000


def timed(act: Callable[[], Any], seconds: float) -> list[float]:
    """How long each of as many calls as fit took."""
    found, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        act()
        found.append(time.perf_counter() - began)
    return found


def result(what: str, store: str, found: list[float], reach: str = "") -> Result:
    """Of calls one after the other."""
    return Result(what, store, len(found) / sum(found), *quantiles(found), reach)


# --- the disk ----------------------------------------------------------------------------------


def disk(folder: Path, seconds: float) -> list[Result]:
    """What a commit and what a published file cost without any of our code."""
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append() -> None:
        os.write(journal, bytes(924))
        os.fdatasync(journal)

    def replace() -> None:
        handle = os.open(folder / "new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(handle, bytes(8192))
        os.fsync(handle)
        os.close(handle)
        (folder / "new").rename(folder / "file")
        parent = os.open(folder, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)

    found = [
        result("disk: append 924 B, fdatasync", "-", timed(append, seconds)),
        result("disk: write 8 KiB, fsync, rename, fsync", "-", timed(replace, seconds)),
    ]
    os.close(journal)
    return found


# --- appends -----------------------------------------------------------------------------------


def prepared(count: int) -> list[tuple[str, bytes]]:
    """Leaves made before the clock starts; 0 opens the log."""
    body = {"schema": 1, "origin": paper.ORIGIN, "vkeys": paper.VKEYS[:1]}
    first = ("key/0", paper.made(0, "log.opened", body))
    return [first, *((f"key/{number}", tall.config_leaf(number)) for number in range(1, count))]


def appends(log: Log, store: str, writers: int, seconds: float) -> Result:
    """`writers` threads that each wait for every acknowledgement, beside a publisher."""
    leaves = iter(prepared(int(40_000 * seconds) + 1))
    log.append(*next(leaves))
    turn, latencies = threading.Lock(), [[] for _ in range(writers)]
    ended = threading.Event()

    def write(mine: list[float]) -> None:
        while not ended.is_set():
            with turn:
                key, data = next(leaves)
            began = time.perf_counter()
            log.append(key, data)
            mine.append(time.perf_counter() - began)

    def publish() -> None:
        with Sequencer(log) as sequencer:
            while not ended.wait(0.2):
                sequencer.sequence(NOW)

    threads = [threading.Thread(target=write, args=(mine,)) for mine in latencies]
    threads.append(threading.Thread(target=publish))
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    ended.wait(seconds)
    ended.set()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    found = [one for mine in latencies for one in mine]
    name = f"append, {writers} writer{'s' * (writers > 1)}"
    reach = f"{REACH[name]:,}/s, p99 10 ms" if name in REACH else ""
    return Result(name, store, len(found) / took, *quantiles(found), reach)


def pipelined(folder: Path, seconds: float) -> Result:
    """Transactions of 512 leaves: parsed, hashed and durable."""
    from ledger import leaf

    store = SqliteStore(folder / "pipelined.db")
    number, found = 0, []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        for one in range(number, number + 512):
            leaf.parse(tall.config_leaf(one))
        tall.pour(store, number, 512)
        number += 512
        found.append(time.perf_counter() - began)
    store.close()
    return Result("pipelined, 512 a commit", "SQLite", number / sum(found), *quantiles(found),
                  f"{REACH['pipelined']:,}/s")  # fmt: skip


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL that fsyncs."""
    with servers.postgres(options={"fsync": "on"}) as cluster:
        yield cluster.url()


def all_appends(folder: Path, stores: list[str], seconds: float) -> Iterator[Result]:
    """Every store with 1, 16 and 64 writers, and the pipeline."""
    for writers in (1, 16, 64) if "sqlite" in stores else ():
        store = SqliteStore(folder / f"{writers}.db")
        log = open_log(folder / str(writers), store, paper.ORIGIN, paper.signers())
        yield appends(log, "SQLite", writers, seconds)
        store.close()
    if "sqlite" in stores:
        yield pipelined(folder, seconds)
    if "postgres" in stores:
        from bridge.logstore import PostgresStore

        for writers in (1, 16):
            with postgres() as url:
                opened = PostgresStore(url)
                place = folder / f"postgres-{writers}"
                log = open_log(place, opened, paper.ORIGIN, paper.signers())
                yield appends(log, "PostgreSQL", writers, seconds)
                opened.close()


# --- proofs ------------------------------------------------------------------------------------


class Known:
    """A stand-in for the query index: where the leaf is that was just asked for."""

    def __init__(self) -> None:
        self.row: Row | None = None

    def find(self, *, leaf_hash: bytes | None = None, idem: str | None = None) -> Row | None:
        """The leaf that the caller said is next."""
        del leaf_hash, idem
        return self.row


def built(folder: Path, size: int, progress: Progress) -> float:
    """A log of `size` leaves, written in bulk without fsync; leaves a second."""
    task = progress.add_task(f"building {size:,} leaves", total=size)
    leaves = (data for _, data in prepared(1))
    entries = (next(leaves, None) or tall.config_leaf(number) for number in range(size))
    began = time.perf_counter()
    for done in tall.write_tiles(folder, entries, size, paper.ORIGIN, paper.signers()):
        progress.update(task, completed=done)
    return size / (time.perf_counter() - began)


def indexed(path: Path, size: int, progress: Progress) -> SqliteStore:
    """A query index of published leaves, whose bytes live in the tiles."""
    store, step = SqliteStore(path), 50_000
    store.pin(paper.ORIGIN)
    task = progress.add_task(f"indexing {size:,} leaves", total=size)
    db: sqlite3.Connection = store._writer
    for start in range(0, size, step):
        rows = [
            (f"key/{number}", merkle.leaf_hash(tall.config_leaf(number)), number)
            for number in range(start, min(size, start + step))
        ]
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO leaves (idem, leaf_hash, idx, type, time)"
            " VALUES (?, ?, ?, 'config.changed', '2026-01-02T03:04:05.678Z')",
            rows,
        )
        db.execute("COMMIT")
        progress.update(task, completed=start + len(rows))
    return store


def proofs(folder: Path, size: int, seconds: float, progress: Progress) -> Iterator[Result]:
    """Inclusion by `Log.proof`, consistency by `Log.consistency`, at one size."""
    log_folder = folder / f"log-{size}"
    log_folder.mkdir()
    rate = built(log_folder, size, progress)
    yield Result(f"bulk build, {size:,} leaves", "tiles", rate, 0, 0)
    real = indexed(folder / f"{size}.db", size, progress) if size <= INDEXED else None
    known, chance = Known(), random.Random(1)
    store: Any = real or known
    log = Log(log_folder, store, paper.ORIGIN, ())

    def prove() -> None:
        number = chance.randrange(1, size)
        value = merkle.leaf_hash(tall.config_leaf(number))
        known.row = Row(value, number, None)
        log.proof(value)

    def continue_() -> None:
        log.consistency(chance.randrange(1, size), size)

    for _ in range(20):
        prove()  # warm
    kind = "SQLite" if real else "stand-in"
    yield result(f"inclusion proof, {size:,} leaves", kind, timed(prove, seconds), "p99 2 ms")
    yield result(f"consistency proof, {size:,} leaves", "-", timed(continue_, seconds))
    if real is not None:
        real.close()
    shutil.rmtree(log_folder)


def audited(leaves: int) -> Result | None:
    """What tests/benchmarks/audit.py says, with schema and trace rules."""
    if not leaves:
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = audit.measure(Path(folder), audit.write_log(Path(folder), leaves))
    memory = f"{found['most'] / 1e6:,.0f} MB at most"
    rate = found["leaves"] / found["cpu"]
    return Result(f"full audit, {leaves:,} leaves", memory, rate, 0, 0, "50,000/s of a core")


# --- the table ---------------------------------------------------------------------------------


def show(console: Console, results: list[Result]) -> None:
    """One table."""
    table = Table("what", "store", "per second", "p50 ms", "p99 ms", "reach", title=machine())
    for one in results:
        marks = (f"{one.p50:.2f}", f"{one.p99:.2f}") if one.p50 else ("", "")
        table.add_row(one.what, one.store, f"{one.rate:,.0f}", *marks, one.reach)
    console.print(table)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each line")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--store", nargs="*", default=["sqlite", "postgres"],
                        choices=["sqlite", "postgres"])  # fmt: skip
    parser.add_argument("--audit", type=int, default=200_000, help="leaves; 0 for none")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    said = parser.parse_args()
    console, results = Console(width=130), []
    with tempfile.TemporaryDirectory(dir=said.folder) as name:
        folder = Path(name)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            results += disk(folder, min(2.0, said.seconds))
            for one in all_appends(folder, said.store, said.seconds):
                results.append(one)
                progress.console.print(f"{one.what}, {one.store}: {one.rate:,.0f}/s")
            for size in said.sizes:
                results += proofs(folder, size, said.seconds, progress)
    with contextlib.suppress(subprocess.CalledProcessError):
        if (found := audited(said.audit)) is not None:
            results.append(found)
    show(console, results)
    if said.json is not None:
        said.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
