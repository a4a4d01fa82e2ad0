"""Our log and its receipts, judged by code that knows nothing of radseal (tests/strangers.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import paper_log as paper
import pytest
import strangers as judges
import tall_log as tall

from ledger import leaf, merkle, note, verify
from ledger.errors import LeafError, MalformedTile
from ledger.tiles import MAX_ENTRY, pack

pytestmark = pytest.mark.peer

SIZES = (1, 2, 3, 255, 256, 257, 511, 512, 513, 1500, 65_535, 65_536, 65_537)
NAMES = ("go x/mod", "metamorphic", "sigstore", "go mldsa")


@dataclass(frozen=True)
class Stage:
    """One log as it was at a size, with receipts and checkpoints from now and before."""

    folder: Path
    size: int
    root: str
    kept: list[Path]


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[int, Stage]:
    """One log that grew through all sizes, and what somebody kept on the way."""
    place = tmp_path_factory.mktemp("stages")
    site = paper.Site(place)
    hashes, kept, found = [site.store.select()[0].leaf_hash], [], {}
    with site.sequencer():
        for size in SIZES:
            hashes += tall.raise_to(site, size)
            for index in sorted({0, size // 2, size - 1}):
                kept.append(place / f"{size}-{index}.tlog-proof")
                kept[-1].write_text(site.log.proof(hashes[index]))
            kept.append(place / f"{size}.checkpoint")
            kept[-1].write_text(site.log.checkpoint_text())
            folder = tall.linked(site.folder, place / str(size))
            root = leaf.ref(site.log.checkpoint().root)
            found[size] = Stage(folder, size, root, list(kept))
    site.store.close()
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_each_stranger_accepts_the_log_its_receipts_and_what_came_before(
    size, name, stages, strangers
):
    stage = stages[size]
    last = strangers[name].accept(stage.folder, paper.VKEYS, stage.kept)
    assert last.split(" ")[1:3] == [str(size), stage.root]


@pytest.mark.parametrize("size", SIZES)
def test_we_accept_it_and_nothing_lies_ahead(size, stages):
    report = verify.verify_log(stages[size].folder, paper.VKEYS)
    assert (report.size, leaf.ref(report.root)) == (size, stages[size].root)
    assert report.ahead == ()


@pytest.mark.parametrize("name", NAMES)
def test_the_log_of_an_earlier_release_is_accepted(name, root, strangers):
    site = root / "tests/sites/0.1.0"
    keys = verify.read_vkeys((site / "ledger.vkey").read_text())
    assert strangers[name].accept(site / "ledger", keys).startswith("OK ")


@pytest.mark.timeout(240)
def test_the_log_of_the_demo_is_accepted(tmp_path, strangers):
    """What `radseal demo` leaves behind, judged by all: the product's own leaves."""
    command, said = [sys.executable, "-m", "bridge", "demo", "--keep"], []
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as demo:
        try:
            for line in demo.stdout:
                said.append(line)
                if "Ctrl-C ends it" in line:
                    demo.terminate()  # as Ctrl-C does, which a process in the background ignores
        finally:
            demo.terminate()
    assert any(line.startswith("all verified") for line in said), "".join(said)
    (folder,) = {path.parent for path in tmp_path.rglob("ledger/checkpoint")}
    keys = verify.read_vkeys((folder.parent / "ledger.vkey").read_text())
    for stranger in strangers.values():
        assert stranger.accept(folder, keys).startswith("OK ")


def long_leaf(number: int, size: int) -> bytes:
    """A lawful leaf of exactly `size` bytes."""
    bare = paper.made(number, "config.changed", {"digest": "0" * 64, "keys": []})
    words, rest = [], size - len(bare)
    while rest > 2:
        length = min(200, rest - 3 if rest <= 203 or rest > 206 else rest // 2)
        words.append("a" * length)
        rest -= length + (3 if len(words) > 1 else 2)
    return paper.made(number, "config.changed", {"digest": "0" * 64, "keys": words})


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_entry_is_accepted_by_all(name, strangers, tmp_path):
    site = paper.Site(tmp_path)
    data = long_leaf(1, MAX_ENTRY)
    assert len(data) == MAX_ENTRY
    value = site.log.append("key/1", data)
    site.number = 2
    site.fill(3)
    site.publish()
    receipt = tmp_path / "x.tlog-proof"
    receipt.write_text(site.log.proof(value))
    strangers[name].accept(site.folder, paper.VKEYS, [receipt])
    assert verify.verify_log(site.folder, paper.VKEYS).size == 5
    site.store.close()


def test_a_longer_entry_has_no_form():
    with pytest.raises(LeafError, match="65535"):
        long_leaf(1, MAX_ENTRY + 1)
    with pytest.raises(MalformedTile):
        pack([bytes(MAX_ENTRY + 1)])


GREASE = [
    note.Line("grease.example/one", b"\x00\x01\x02\x03", b"\x5a" * 40),
    note.Line(paper.ORIGIN, b"\xff\xff\xff\xff", b"\xfa" * 64),
    note.Line("grease.example/three", b"\x04\x04\x04\x04", b"\x00"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ["grease first", "grease last", "reversed", "sixteen more"])
def test_lines_of_nobody_and_any_order_are_accepted(order, name, stages, strangers, tmp_path):
    folder = tall.linked(stages[257].folder, tmp_path / "log")
    text, lines = note.parse((folder / "checkpoint").read_text())
    more = [note.Line(f"w{n}.example", bytes((n, 0, 0, 9)), bytes(72)) for n in range(16)]
    shown = {
        "grease first": [*GREASE, *lines],
        "grease last": [*lines, *GREASE],
        "reversed": [*reversed(lines)],
        "sixteen more": [*more[:9], *lines, *more[9:]],
    }[order]
    (folder / "checkpoint").unlink()
    (folder / "checkpoint").write_text(text + "\n" + "".join(map(str, shown)))
    strangers[name].accept(folder, paper.VKEYS)
    assert verify.verify_log(folder, paper.VKEYS).size == 257


def test_our_consistency_proofs_convince_metamorphic_and_only_of_the_truth(stages):
    ml = pytest.importorskip("metamorphic_log")
    ours = paper.VKEYS[:1]
    texts = {size: (stages[size].folder / "checkpoint").read_text() for size in SIZES}
    for old in SIZES:
        for new in (size for size in SIZES if size >= old):
            proof = judges.Reader(stages[new].folder, new).consistency(old)
            ml.checkpoint_verify_consistency(texts[old], texts[new], ours, proof)
            for place in range(len(proof)):
                spoiled = [*proof[:place], merkle.EMPTY, *proof[place + 1 :]]
                with pytest.raises(ml.VerifyError):
                    ml.checkpoint_verify_consistency(texts[old], texts[new], ours, spoiled)
