"""bridge.audit.witnessed: a receipt is older than its witnesses; the log that they saw is asked."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from bridge.audit.file import verify_file
from bridge.audit.witnessed import cosigned
from bridge.cli import app
from bridge.errors import RadsealError, Refused
from ledger import note
from ledger.policy import Policy

AT = 1_800_000_000


@pytest.fixture
def paper(results, tmp_path):
    return results.PaperResults(tmp_path)


@pytest.fixture
def witness(results):
    return note.Ed25519Cosigner.generate("witness.example", results.paper_log.seed("witness"))


@pytest.fixture
def policy(paper, witness) -> Policy:
    logs = "".join(f"log {key}\n" for key in paper.vkeys)
    return Policy.parse(f"{logs}witness friend {note.vkey(witness)}\nquorum friend\n")


@pytest.fixture
def asked(paper, tmp_path):
    """Verify the SR and ask for its witnesses; `log` is a folder or address, None for none."""

    def call(policy, log=None):
        path = tmp_path / "sr.dcm"
        path.write_bytes(paper.stamped["sr"])
        report = verify_file(path, policy)
        return cosigned(report.chain.composed.index, report.verdict, policy, log)

    return call


def cosign(paper, witness, folder=None) -> None:
    """Publish `checkpoint.witnessed`, as the log does once its witnesses have signed."""
    text = (paper.site.folder / "checkpoint").read_text(encoding="utf-8")
    body, _ = note.parse(text)
    line = note.sign_note(body, [witness], AT)[len(body) + 1 :]
    target = (folder or paper.site.folder) / "checkpoint.witnessed"
    target.write_text(text + line, encoding="utf-8")


def test_without_the_log_it_is_not_witnessed_yet(asked, policy):
    with pytest.raises(Refused, match=r"not witnessed yet.*--log"):
        asked(policy)


def test_with_the_log_that_witnesses_saw(paper, asked, policy, witness):
    with pytest.raises(Refused, match="not witnessed yet"):
        asked(policy, str(paper.site.folder))
    cosign(paper, witness)
    assert asked(policy, str(paper.site.folder)) == {"friend": AT}


def test_a_later_checkpoint_counts_and_the_log_may_grow_on(paper, asked, policy, witness):
    paper.site.fill(300)
    paper.site.publish(1)
    cosign(paper, witness)
    paper.site.fill(5)
    paper.site.publish(2)
    assert asked(policy, str(paper.site.folder)) == {"friend": AT}


def test_witnesses_that_saw_the_log_before_the_leaf_say_nothing(results, tmp_path, witness):
    made = results.PaperResults(tmp_path)
    cosign(made, witness)
    logs = "".join(f"log {key}\n" for key in made.vkeys)
    policy = Policy.parse(f"{logs}witness friend {note.vkey(witness)}\nquorum friend\n")
    size = made.site.log.size()
    made.site.fill(1)
    made.site.publish(1)
    proof = made.site.log.checkpoint_text()
    folder = str(made.site.folder)
    assert cosigned(size - 1, policy.judge(proof), policy, folder) == {"friend": AT}
    with pytest.raises(Refused, match="not witnessed yet"):
        cosigned(size, policy.judge(proof), policy, folder)


def test_another_witness_is_none(results, paper, asked, policy):
    cosign(paper, note.Ed25519Cosigner.generate("w.example", results.paper_log.seed("other")))
    with pytest.raises(Refused, match="not witnessed yet"):
        asked(policy, str(paper.site.folder))


@pytest.mark.parametrize("quorum", [True, False])
def test_a_split_view_is_seen(results, tmp_path, asked, policy, witness, quorum):
    """The operator shows witnesses another log than the one he stamps results by."""
    (tmp_path / "other").mkdir()
    other = results.PaperResults(tmp_path / "other", tell={"input.sealed": {"generation": 2}})
    cosign(other, witness)
    trusted = policy if quorum else Policy(policy.logs)
    with pytest.raises(Refused, match="another than the receipt's"):
        asked(trusted, str(other.site.folder))


def test_a_rolled_back_log_is_seen(paper, asked, policy, witness, tmp_path):
    copy = tmp_path / "old"
    shutil.copytree(paper.site.folder, copy)
    paper.site.fill(1)
    paper.site.publish(1)
    for kind in paper.stamped:
        paper.stamped[kind] = paper.stamp(kind)
    cosign(paper, witness, copy)
    with pytest.raises(Refused, match="rolled back"):
        asked(policy, str(copy))


def test_a_folder_that_is_no_log(asked, policy, tmp_path):
    with pytest.raises(Refused, match="holds no checkpoint"):
        asked(policy, str(tmp_path / "nowhere"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "checkpoint").write_text("nonsense")
    with pytest.raises(Refused, match="does not verify"):
        asked(policy, str(tmp_path / "bad"))
    (tmp_path / "bad" / "checkpoint").write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="does not verify"):
        asked(policy, str(tmp_path / "bad"))


def test_a_log_without_tiles_is_refused(paper, policy, witness, tmp_path):
    paper.site.fill(1)
    paper.site.publish(1)
    cosign(paper, witness)
    for tile in (paper.site.folder / "tile").rglob("*"):
        if tile.is_file():
            tile.unlink()
    (tmp_path / "sr.dcm").write_bytes(paper.stamped["sr"])
    (tmp_path / "policy").write_text(str(policy))
    words = ["verify", tmp_path / "sr.dcm", "--policy", tmp_path / "policy"]
    done = CliRunner().invoke(app, [*map(str, words), "--log", str(paper.site.folder)])
    assert isinstance(done.exception, RadsealError)
    assert "is missing" in str(done.exception)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


def test_by_command_over_http_a_file_and_a_receipt(paper, policy, witness, tmp_path):
    cosign(paper, witness)
    (tmp_path / "sr.dcm").write_bytes(paper.stamped["sr"])
    (tmp_path / "sr.tlog-proof").write_text(paper.proofs("sr")[0], encoding="utf-8")
    (tmp_path / "policy").write_text(str(policy))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=paper.site.folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name in ("sr.dcm", "sr.tlog-proof"):
            words = ["verify", str(tmp_path / name), "--policy", str(tmp_path / "policy")]
            alone = CliRunner().invoke(app, words)
            assert isinstance(alone.exception, Refused)
            assert "not witnessed yet" in str(alone.exception)
            words += ["--log", f"http://127.0.0.1:{server.server_port}/"]
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.exception
            assert "witnessed: by friend at 2027-01-15T08:00:00.000Z" in done.output
            assert "another history" not in done.output
            said = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
            assert said["witnessed"] == {"friend": AT}
    finally:
        server.shutdown()
        server.server_close()
