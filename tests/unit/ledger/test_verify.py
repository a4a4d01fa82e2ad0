"""What a stranger's verifier accepts, and the tamper matrix of what it refuses."""

from __future__ import annotations

import shutil

import pytest

from ledger import leaf, note, verify
from ledger.errors import BadKey, SignatureInvalid, VerifyError
from ledger.proof import Proof


def log_files(folder):
    found = (folder / "tile").rglob("*")
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


@pytest.fixture
def published(site, paper):
    """A log with full tiles, partial ones, and partial ones that others replaced."""
    paper.Story(site).until("study.closed")
    with site.sequencer():
        site.publish()
        site.fill(290)
        site.publish(1)
        site.fill(5)
        site.publish(2)
    return site.folder


def test_an_honest_log(published, paper):
    report = verify.verify_log(published, paper.VKEYS)
    assert (report.origin, report.size) == (paper.ORIGIN, 309)
    assert report.signed_by == tuple(paper.VKEYS)
    assert report.counts["config.changed"] == 295
    assert report.open_studies == report.ahead == ()
    assert len(log_files(published)) == 2 + 2 * 2 + 2 - 1
    verify.verify_log(published, paper.VKEYS[:1])
    verify.verify_log(published, paper.VKEYS[1:])


def test_every_flipped_byte_is_refused_and_its_file_is_named(published, paper):
    for path in log_files(published):
        data = (published / path).read_bytes()
        places = {0, 1, 2, len(data) // 3, len(data) // 2, len(data) - 1}
        places.update(range(7, len(data), 9973))
        for place in sorted(places):
            spoiled = bytearray(data)
            spoiled[place] ^= 0x01
            (published / path).write_bytes(spoiled)
            with pytest.raises(VerifyError) as refusal:
                verify.verify_log(published, paper.VKEYS[:1])
            assert refusal.value.where == path, f"{path} byte {place}: {refusal.value}"
        (published / path).write_bytes(data)
    verify.verify_log(published, paper.VKEYS)


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: d[:0], lambda d: bytes(len(d))]
)
def test_a_file_of_another_length_is_refused(change, published, paper):
    for path in log_files(published):
        data = (published / path).read_bytes()
        (published / path).write_bytes(change(data))
        with pytest.raises(VerifyError) as refusal:
            verify.verify_log(published, paper.VKEYS)
        assert refusal.value.where == path
        (published / path).write_bytes(data)


def test_a_missing_file_is_named(published, paper):
    needed = [p for p in log_files(published) if "p/14" not in p and "p/48" not in p]
    for path in needed:
        data = (published / path).read_bytes()
        if path in ("tile/entries/001.p/53", "tile/0/001.p/53") or ".p/" not in path:
            (published / path).unlink()
            with pytest.raises(VerifyError, match="is missing") as refusal:
                verify.verify_log(published, paper.VKEYS)
            assert refusal.value.where == path
            (published / path).write_bytes(data)


@pytest.mark.parametrize("name", ["tile/0/002.p/0", "tile/entries/x", "tile/note.txt", "tile/0/1"])
def test_a_file_that_is_no_tile_is_named(name, published, paper):
    (published / name).parent.mkdir(parents=True, exist_ok=True)
    (published / name).write_bytes(b"")
    with pytest.raises(VerifyError) as refusal:
        verify.verify_log(published, paper.VKEYS)
    assert refusal.value.where == name


def test_every_changed_byte_of_the_signed_text_is_refused(published, paper):
    path = published / "checkpoint"
    data = path.read_bytes()
    for place in range(data.index(b"\n\n") + 1):
        for bit in (0x01,):
            spoiled = bytearray(data)
            spoiled[place] ^= bit
            path.write_bytes(spoiled)
            with pytest.raises(VerifyError) as refusal:
                verify.verify_log(published, paper.VKEYS)
            assert refusal.value.where == "checkpoint"


def test_a_stripped_post_quantum_line_is_refused_by_whoever_holds_both_keys(published, paper):
    path = published / "checkpoint"
    text, lines = note.parse(path.read_text())
    path.write_text(text + "\n" + str(lines[0]))
    verify.verify_log(published, paper.VKEYS[:1])
    with pytest.raises(VerifyError, match="type 06"):
        verify.verify_log(published, paper.VKEYS)


def test_another_logs_keys_and_an_empty_folder(published, paper, tmp_path):
    other = [note.vkey(signer) for signer in paper.signers(name="other")]
    with pytest.raises(VerifyError, match="no key that you trust"):
        verify.verify_log(published, other)
    with pytest.raises(VerifyError, match="is missing"):
        verify.verify_log(tmp_path / "nowhere", paper.VKEYS)
    with pytest.raises(BadKey):
        verify.verify_log(published, [])
    with pytest.raises(BadKey):
        verify.verify_log(published, ["x"])


def test_a_key_of_another_name_cannot_sign_for_a_log(published, paper):
    stranger = paper.signers("other.example", "stranger")[0]
    text, lines = note.parse((published / "checkpoint").read_text())
    line = note.Line(stranger.name, stranger.key_id, stranger.sign(text.encode(), 0))
    (published / "checkpoint").write_text(text + "\n" + "".join(map(str, [*lines, line])))
    with pytest.raises(VerifyError, match="another log's key"):
        verify.verify_log(published, [note.vkey(stranger)])


def test_an_older_checkpoint_over_newer_tiles_is_consistent_and_says_so(site, paper, tmp_path):
    with site.sequencer():
        site.fill(9)
        site.publish()
        older = (site.folder / "checkpoint").read_bytes()
        site.fill(4)
        site.publish()
    (site.folder / "checkpoint").write_bytes(older)
    report = verify.verify_log(site.folder, paper.VKEYS)
    assert report.size == 10
    assert report.ahead == ("tile/0/000.p/14", "tile/entries/000.p/14")
    for path in report.ahead:
        data = bytearray((site.folder / path).read_bytes())
        data[-1] ^= 1
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(site.folder, copy)
        (copy / path).write_bytes(data)
        with pytest.raises(VerifyError):
            verify.verify_log(copy, paper.VKEYS)


def test_a_leaf_that_is_no_leaf_is_refused_though_signed(site, paper):
    from ledger.store import Facts

    site.store.append("raw", b"{}", leaf.leaf_hash(b"{}"), Facts("x", "now"))
    site.publish()
    with pytest.raises(VerifyError) as refusal:
        verify.verify_log(site.folder, paper.VKEYS)
    assert refusal.value.where == "leaf 1"


def test_an_unlawful_story_is_refused_though_signed(site, paper):
    story = paper.Story(site).until("input.sealed")
    story.tell("consent.checked", paper.permit(decision="deny"))
    story.until("inference.started")
    site.publish()
    with pytest.raises(VerifyError) as refusal:
        verify.verify_log(site.folder, paper.VKEYS)
    assert refusal.value.where == "leaf 7 (inference.started)"
    assert refusal.value.what.startswith("R1: ")


def test_a_proof_travels_alone(site, paper):
    hashes = site.fill(300)
    site.publish()
    for number in (0, 100, 299):
        text = site.log.proof(leaf.unref(hashes[number]))
        report = verify.verify_proof(text, paper.VKEYS, paper.ORIGIN)
        assert (report.index, report.checkpoint.size) == (number + 1, 301)
        assert report.record["body"] == {"digest": f"{number:064x}"}
        assert leaf.ref(report.leaf_hash) == hashes[number]
        assert report.signed_by == tuple(paper.VKEYS)


def test_a_proof_of_anything_else_is_refused(site, paper):
    hashes = site.fill(9)
    site.publish()
    text = site.log.proof(leaf.unref(hashes[4]))
    proof = Proof.parse(text)
    other = Proof.parse(site.log.proof(leaf.unref(hashes[5])))
    wrong = [
        Proof(other.extra, proof.index, proof.path, proof.checkpoint),
        Proof(None, proof.index, proof.path, proof.checkpoint),
        Proof(proof.extra, proof.index + 1, proof.path, proof.checkpoint),
        Proof(proof.extra, proof.index, proof.path[:-1], proof.checkpoint),
        Proof(proof.extra, proof.index, other.path, proof.checkpoint),
        Proof(proof.extra, proof.index, proof.path, proof.checkpoint.replace("\n10\n", "\n11\n")),
    ]
    for one in wrong:
        with pytest.raises(VerifyError):
            verify.verify_proof(str(one), paper.VKEYS)
    for place in range(0, len(text), 7):
        if text.index("\n\n") + 2 + len(paper.ORIGIN) > place:
            spoiled = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
            with pytest.raises(VerifyError):
                verify.verify_proof(spoiled, paper.VKEYS)
    with pytest.raises(VerifyError, match=r"not of other\.example"):
        verify.verify_proof(text, paper.VKEYS, "other.example")
    with pytest.raises(BadKey):
        verify.verify_proof(text, [])


def test_policy_and_key_files(paper):
    text = verify.policy_text(paper.VKEYS)
    assert text == f"log {paper.VKEYS[0]}\nlog {paper.VKEYS[1]}\nquorum none\n"
    with pytest.raises(BadKey):
        verify.policy_text(["x"])
    assert verify.read_vkeys(f"# ours\n\n {paper.VKEYS[0]}\n") == paper.VKEYS[:1]
    with pytest.raises(SignatureInvalid):
        verify.open_checkpoint("a\n\n— b AAAAAAAA\n", paper.VKEYS)
