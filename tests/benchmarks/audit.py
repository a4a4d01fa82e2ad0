"""How fast and in how much memory a full audit runs: `python tests/benchmarks/audit.py [LEAVES]`.

Writes a log of lawful studies (tests/forger.py: nothing of the verifier's) into a temporary
folder and verifies it as `python -m ledger verify` does, schema and trace rules included, in a
process of its own. Prints leaves per second of one core, how that compares with json.loads of
the same leaves (other work on the machine slows both), and the largest memory. Ten million
leaves take 8 GB of disk and a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import forger

_AT_ONCE = 65_536


def _put(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_log(folder: Path, size: int) -> list[str]:
    """Write a lawful log of exactly `size` leaves; its vkeys. Memory: 32 bytes a leaf."""
    log = forger.Forger().open()
    hashes: list[bytes] = []
    bundles, studies = 0, 0
    while len(hashes) < size:
        while len(log.leaves) < _AT_ONCE and len(hashes) + len(log.leaves) < size:
            log.study(str(studies))
            studies += 1
        some, log.leaves = log.leaves[:_AT_ONCE], log.leaves[_AT_ONCE:]
        for name, data in forger.files(some[: size - len(hashes)]):
            if name.startswith("tile/entries/"):
                path = name.split("/", 2)[2].partition(".p/")
                index = bundles + int(path[0].replace("x", "").replace("/", ""))
                width = int(path[2]) if path[2] else 256
                _put(folder, forger.path_of("entries", index, width), data)
        hashes += [forger.sha(b"\x00", data) for data in some[: size - len(hashes)]]
        bundles += _AT_ONCE // 256
    row, level = hashes, 0
    while row:
        above = []
        for first in range(0, len(row), 256):
            part = row[first : first + 256]
            _put(folder, forger.path_of(str(level), first // 256, len(part)), b"".join(part))
            if len(part) == 256:
                above.append(forger.mth(part))
        row, level = above, level + 1
    body = f"{log.origin}\n{size}\n{forger.text(forger.mth(hashes))}\n"
    at = int(log.now.timestamp()) + 1
    note = body + "\n" + "".join(key.line(body, at) for key in (forger.ED, forger.ML))
    (folder / "checkpoint").write_text(note)
    return list(forger.VKEYS)


def measure(folder: Path, vkeys: list[str]) -> dict[str, Any]:
    """Verify in a process of its own; leaves, seconds of its CPU, largest memory in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--inside", str(folder), json.dumps(vkeys)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _most() -> int:
    """Largest memory of this program; getrusage would count what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _inside(folder: str, vkeys: str) -> None:
    import gc

    from ledger.tiles import unpack
    from ledger.verify import audit

    gc.disable()  # as ledger/__main__.py
    before = _most()
    clock, cpu = time.perf_counter(), time.process_time()
    report = audit(Path(folder), json.loads(vkeys))
    leaves = unpack((Path(folder) / "tile/entries/000").read_bytes(), 256) * 100
    start = time.process_time()
    for data in leaves:
        json.loads(data)
    loads = (time.process_time() - start) / len(leaves)
    print(json.dumps({
        "loads": loads, "leaves": report.size, "broken": report.broken,
        "seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu,
        "before": before, "most": _most(),
    }))  # fmt: skip


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("leaves", nargs="?", type=int, default=200_000)
    parser.add_argument("--keep", type=Path, help="write the log here and keep it")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _inside(*options.inside)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        vkeys = write_log(folder, options.leaves)
        found = measure(folder, vkeys)
    grown = found["most"] - found["before"]
    print(f"{found['leaves']:,} leaves, {found['broken']} findings")
    print(f"{found['leaves'] / found['cpu']:,.0f} leaves/s of one core ({found['cpu']:.1f} s)")
    times = found["cpu"] / found["leaves"] / found["loads"]
    print(f"{times:.1f} times json.loads alone, which took {found['loads'] * 1e6:.1f} µs a leaf")
    print(f"{found['most'] / 2**20:.0f} MB, {grown / found['leaves']:.0f} bytes a leaf")


if __name__ == "__main__":
    main()
