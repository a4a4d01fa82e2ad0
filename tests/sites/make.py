"""Make the site folder of a release, small enough to commit: `python tests/sites/make.py 0.1.0`.

Run it once for each release, from the state that was released, and commit what it writes;
tests/unit/bridge/test_migrations.py then migrates and verifies it for ever. It holds invented
patients only, and no key: neither the site's, nor the log's, nor the vendor's.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
NODE = "node1"
NO_PICTURE = {"deployment": {"results": {"secondary_capture": False}}}


def _bench() -> ModuleType:
    path = HERE.parent / "bench.py"
    spec = importlib.util.spec_from_file_location("bench", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def live(folder: Path) -> dict[str, object]:
    """Let a site live through one of each; returns what a reader must find in it."""
    bench = _bench()
    pacs = bench.Archive()
    desk = bench.Bench(folder, pacs.toml())
    try:
        desk.model(NO_PICTURE)
        read, refused = bench.images(4), bench.images(3, study="refused", patient=bench.BERT)
        unwanted = bench.images(2, study="unwanted", Modality="MR")
        bench.refuse(desk, bench.BERT)
        stranger = bench.changed(bench.images(5)[4], PatientID="C-3")
        desk.receive(*read, stranger, *refused, *unwanted, b"no DICOM at all")
        states = {}
        for sent in (read, refused, unwanted):
            uid = str(sent[0].StudyInstanceUID)
            desk.walk(uid)
            states[uid] = str(desk.study(uid).state)
        report = desk.verify()
        return {
            "studies": states,
            "size": report.size,
            "leaves": dict(sorted(report.counts.items())),
        }
    finally:
        desk.close()
        pacs.close()


def shrink(database: Path) -> None:
    """Write what is in the WAL into the file, in pages as small as they come."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA page_size=512")
        connection.execute("VACUUM")


def main(release: str) -> None:
    """Make tests/sites/RELEASE anew."""
    target = HERE / release
    socket.gethostname = lambda: NODE  # leaves name the node; not this one
    with tempfile.TemporaryDirectory() as place:
        expected = live(Path(place))
        site = Path(place) / "site"
        for unwanted in ("keys", "work", ".locks"):
            shutil.rmtree(site / unwanted, ignore_errors=True)
        for database in site.glob("*.db"):
            shrink(database)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site, target, ignore=shutil.ignore_patterns("*-wal", "*-shm", ".lock"))
    text = json.dumps(expected, indent=2)
    (target / "expected.json").write_text(text + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size // 1024} kB, {expected['size']} leaves")


if __name__ == "__main__":
    main(sys.argv[1])
