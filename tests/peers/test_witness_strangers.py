"""Our cosignatures, judged by Go: type 04 under x/mod's signed notes, type 06 by crypto/mldsa."""

from __future__ import annotations

import subprocess
from pathlib import Path

import paper_log as paper
import pytest
import strangers as judges

from ledger import cosigner, note, witness

pytestmark = pytest.mark.peer
NAME, TIME = "w.north.example/1", 1_767_323_045


@pytest.fixture
def cosigned(tmp_path: Path) -> tuple[list[str], Path]:
    """A log's checkpoint with both cosignatures of one witness; the witness's two vkeys."""
    site = paper.Site(tmp_path)
    site.fill(300)
    site.publish()
    signers = [
        note.Ed25519Cosigner.generate(NAME, paper.seed("w")),
        note.MLDSA44Signer.generate(NAME, paper.seed("w")),
    ]
    keys = [note.Verifier.from_vkey(key) for key in paper.VKEYS]
    cosigner.create(tmp_path / "witness.db")
    one = cosigner.Cosigner(tmp_path / "witness.db", signers, lambda: {paper.ORIGIN: keys})
    text = site.log.checkpoint_text()
    reply = one.add_checkpoint(str(witness.Request(0, (), text)).encode(), TIME)
    one.close()
    site.store.close()
    assert reply.status == 200
    path = tmp_path / "checkpoint.witnessed"
    path.write_text(text + reply.body, encoding="utf-8")
    return [note.vkey(signer) for signer in signers], path


@pytest.fixture(scope="module")
def gowitness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return judges.build_gowitness(tmp_path_factory.mktemp("gowitness"))
    except judges.Missing as missing:
        pytest.skip(str(missing))


def run(binary: Path, *words: object) -> tuple[int, str]:
    done = subprocess.run(
        [binary, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.strip()


def test_go_accepts_the_ed25519_cosignature(gowitness, cosigned):
    (ed25519, _), path = cosigned
    assert run(gowitness, paper.VKEYS[0], ed25519, path) == (0, f"OK {TIME}")


def test_go_refuses_another_time_another_tree_and_another_witness(gowitness, cosigned):
    (ed25519, _), path = cosigned
    text = path.read_text(encoding="utf-8")
    signed, lines = note.parse(text)
    (own,) = [one for one in lines if len(one.payload) == 72]
    later = note.Line(own.name, own.key_id, (TIME + 1).to_bytes(8, "big") + own.payload[8:])
    stranger = note.Ed25519Cosigner.generate(NAME, paper.seed("other"))
    for wrong in (text.replace(str(own), str(later)), text.replace(str(own), ""),
                  text.replace("\n301\n", "\n302\n")):  # fmt: skip
        assert wrong != text
        path.write_text(wrong, encoding="utf-8")
        assert run(gowitness, paper.VKEYS[0], ed25519, path)[0] == 1
    path.write_text(text, encoding="utf-8")
    assert run(gowitness, paper.VKEYS[0], note.vkey(stranger), path)[0] == 1
    assert signed.startswith(paper.ORIGIN)


def test_go_accepts_the_post_quantum_cosignature(gomldsa, cosigned):
    (_, mldsa44), path = cosigned
    code, said = run(gomldsa.binary, mldsa44, path)
    assert (code, said.split()[-1]) == (0, str(TIME))
