"""Our log, judged by Go's own transparency-log packages (golang.org/x/mod/sumdb)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import leaf

pytestmark = pytest.mark.peer

HERE = Path(__file__).resolve().parent
GOCODE = Path("/usr/share/gocode")  # where Debian puts golang-*-dev packages


def _missing(words: str) -> None:
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{words} (CI installs every peer)", pytrace=False)
    pytest.skip(words)


@pytest.fixture(scope="module")
def paper():
    """The module tests/paper_log.py."""
    if "paper_log" not in sys.modules:
        spec = importlib.util.spec_from_file_location("paper_log", HERE.parent / "paper_log.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["paper_log"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["paper_log"])
    return sys.modules["paper_log"]


@pytest.fixture(scope="module")
def goverify(tmp_path_factory):
    """The verifier of goverify/main.go, built."""
    go = shutil.which("go")
    if go is None:
        _missing("go is not installed: apt-get install golang-go")
    if not (GOCODE / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        _missing("x/mod is not installed: apt-get install golang-golang-x-mod-dev")
    folder = tmp_path_factory.mktemp("go")
    environment = {
        **os.environ, "GO111MODULE": "off", "GOPATH": str(GOCODE), "GOFLAGS": "",
        "GOTOOLCHAIN": "local", "GOCACHE": str(folder / "cache"),
    }  # fmt: skip
    subprocess.run(
        [go, "build", "-o", folder / "goverify", HERE / "goverify" / "main.go"],
        check=True, env=environment, timeout=240,
    )  # fmt: skip

    def run(*arguments):
        done = subprocess.run(
            [folder / "goverify", *map(str, arguments)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.strip().split("\n")[-1]

    return run


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 513, 1500])
def test_go_accepts_the_log_and_its_receipts(size, goverify, paper, tmp_path):
    site = paper.Site(tmp_path)
    hashes = site.fill(size - 1)
    site.publish()
    receipts = []
    for number in sorted({0, len(hashes) // 2, len(hashes) - 1} if hashes else ()):
        receipts.append(tmp_path / f"{number}.tlog-proof")
        receipts[-1].write_text(site.log.proof(leaf.unref(hashes[number])))
    root = leaf.ref(site.log.checkpoint().root)
    assert goverify(site.folder, paper.VKEYS[0], *receipts) == (0, f"OK {size} {root}")
    site.store.close()


def test_go_accepts_a_log_that_grew_in_steps(goverify, paper, tmp_path):
    site = paper.Site(tmp_path)
    with site.sequencer():
        for step in (1, 100, 200, 256, 1):
            site.fill(step)
            site.publish()
            assert goverify(site.folder, paper.VKEYS[0])[0] == 0
    site.store.close()


def test_go_refuses_what_was_changed(goverify, paper, tmp_path):
    site = paper.Site(tmp_path)
    site.fill(299)
    site.publish()
    site.store.close()
    other = paper.note.vkey(paper.signers(name="other")[0])
    assert goverify(site.folder, other)[0] == 1
    receipt = tmp_path / "x.tlog-proof"
    receipt.write_text("c2sp\n\n")
    assert goverify(site.folder, paper.VKEYS[0], receipt)[0] == 1
    for path in sorted(p for p in site.folder.rglob("*") if p.is_file() and p.name != ".lock"):
        if ".tmp" in path.parts:
            continue
        data = path.read_bytes()
        spoiled = bytearray(data)
        spoiled[len(paper.ORIGIN) + 2 if path.name == "checkpoint" else 40 % len(data)] ^= 1
        path.write_bytes(spoiled)
        assert goverify(site.folder, paper.VKEYS[0])[0] == 1, path
        path.write_bytes(data)
    assert goverify(site.folder, paper.VKEYS[0])[0] == 0
