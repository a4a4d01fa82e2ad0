"""`python -m ledger verify`: exit status and last line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ledger
from ledger import leaf
from ledger.__main__ import main


@pytest.fixture
def published(site, paper):
    paper.Story(site).until("study.received")
    site.publish()
    (site.folder.parent / "ledger.vkey").write_text("\n".join(paper.VKEYS) + "\n")
    return site


def last_line(capsys):
    return capsys.readouterr().out.strip().split("\n")[-1]


def test_a_log_verifies(published, paper, capsys):
    root = leaf.ref(published.log.checkpoint().root)
    for key in (paper.VKEYS[0], str(published.folder.parent / "ledger.vkey")):
        assert main(["verify", str(published.folder), "--vkey", key]) == 0
        out = capsys.readouterr().out
        assert out.endswith(f"OK {paper.ORIGIN}: 5 leaves, 3 files, root {root}\n")
        assert "still open: study.received at leaf 4" in out
        assert "its operator could have shown others another history" in out


def test_a_proof_verifies(published, paper, capsys, tmp_path):
    proof = tmp_path / "x.tlog-proof"
    proof.write_text(published.log.proof(published.store.select()[1].leaf_hash))
    assert main(["verify", str(proof), "--vkey", paper.VKEYS[0]]) == 0
    assert last_line(capsys) == f"OK {paper.ORIGIN}: leaf 1 of 5, model.registered"
    proof.write_bytes(b"\xff")
    assert main(["verify", str(proof), "--vkey", paper.VKEYS[0]]) == 1
    assert last_line(capsys) == "FAIL x.tlog-proof: is not UTF-8"


def test_a_changed_log_fails_and_names_the_file(published, paper, capsys):
    path = published.folder / "tile/0/000.p/5"
    path.write_bytes(bytes(160))
    assert main(["verify", str(published.folder), "--vkey", paper.VKEYS[0]]) == 1
    assert last_line(capsys) == "FAIL tile/0/000.p/5: was changed"


def test_the_auditor_needs_a_log_of_the_key(published, paper, capsys):
    other = paper.note.vkey(paper.signers(name="other")[0])
    assert main(["verify", str(published.folder), "--vkey", other]) == 1
    assert last_line(capsys).startswith("FAIL checkpoint: no key that you trust")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["verify"],
        ["verify", "."],
        ["verify", ".", "--vkey", "x"],
        ["verify", "/no/such", "--vkey", "x"],
    ],
)
def test_wrong_use(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_it_needs_nothing_but_cryptography(published, paper):
    code = (
        "import sys, runpy\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        top = name.split('.')[0]\n"
        "        ours = {'ledger', 'cryptography', '_cffi_backend', 'cffi'}\n"
        "        if top not in sys.stdlib_module_names | ours: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Only())\n"
        "sys.argv = ['ledger', 'verify', *sys.argv[1:]]\n"
        "runpy.run_module('ledger', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(published.folder), "--vkey", paper.VKEYS[0]],
        cwd=Path(ledger.__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().split("\n")[-1].startswith("OK ")
