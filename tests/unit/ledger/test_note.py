"""Signed notes: others' signatures, our own, and every way to spoil one."""

from __future__ import annotations

import base64
import json

import pytest

from ledger import note
from ledger.checkpoint import Checkpoint
from ledger.errors import BadKey, MalformedCheckpoint, MalformedNote, SignatureInvalid

TEXT = str(Checkpoint("ledger.example.org/radiology", 3, b"r" * 32))


@pytest.fixture
def keys(paper):
    return [note.Verifier.from_vkey(key) for key in paper.VKEYS]


@pytest.fixture
def signed(paper):
    return note.sign_note(TEXT, paper.signers(), 1_767_323_045)


def test_notes_of_others_verify(vectors):
    for case in json.loads((vectors / "c2sp" / "notes.json").read_text()):
        keys = [note.Verifier.from_vkey(key) for key in case["vkeys"]]
        opened = note.open_note(case["note"], keys)
        assert opened.text == case["text"]
        assert [key for key, _ in opened.signed] == keys


def test_a_real_witness_verifies_with_both_algorithms(vectors):
    text = (vectors / "c2sp" / "witnessed.note").read_text()
    keys = [
        note.Verifier.from_vkey(key)
        for key in (vectors / "c2sp" / "witness.vkey").read_text().split()
    ]
    opened = note.open_note(text, keys)
    assert {(key.algorithm, time) for key, time in opened.signed} == {
        (note.ED25519_COSIGNATURE, 1785704691),
        (note.MLDSA44, 1785704691),
    }
    assert Checkpoint.parse(opened.text).size == 185550722
    with pytest.raises(SignatureInvalid):
        note.open_note(text.replace("185550722", "185550723"), keys)


def test_our_notes_bear_both_signatures(keys, signed):
    opened = note.open_note(signed, keys)
    assert opened.text == TEXT
    assert [(key.algorithm, time) for key, time in opened.signed] == [
        (note.ED25519, None),
        (note.MLDSA44, 1_767_323_045),
    ]


def test_lines_of_strangers_and_their_order_do_not_matter(keys, signed):
    text, lines = note.parse(signed)
    grease = note.Line("stranger.example", b"abcd", b"anything")
    same_name = note.Line(keys[0].name, b"wxyz", b"anything")
    for order in ([grease, lines[1], same_name, lines[0]], [lines[0], lines[1], grease]):
        again = text + "\n" + "".join(map(str, order))
        assert len(note.open_note(again, keys).signed) == 2


def test_a_known_key_that_fails_spoils_the_note(keys, signed):
    text, lines = note.parse(signed)
    broken = note.Line(lines[0].name, lines[0].key_id, bytes(64))
    with pytest.raises(SignatureInvalid):
        note.open_note(text + "\n" + str(lines[1]) + str(broken), keys)
    short = note.Line(lines[1].name, lines[1].key_id, lines[1].payload[:-1])
    with pytest.raises(MalformedNote):
        note.open_note(text + "\n" + str(lines[0]) + str(short), keys)


def test_a_note_that_nobody_known_signed_is_refused(signed, paper):
    other = [note.Verifier.from_vkey(note.vkey(s)) for s in paper.signers(name="other")]
    with pytest.raises(SignatureInvalid):
        note.open_note(signed, other)
    with pytest.raises(SignatureInvalid):
        note.open_note(signed, [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:-1],
        lambda t: t + "\n",
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace("— ", "- "),
        lambda t: t.replace("— ", "—  "),
        lambda t: t.replace("\n\n", "\n"),
        lambda t: t.split("\n\n")[0] + "\n\n",
        lambda t: t.replace("=\n", "\n"),
        lambda t: t.replace("3\n", "3\t\n", 1),
        lambda t: t + "— a+b AAAAAAAA\n",
        lambda t: t + "— a AAAA\n",
        lambda t: t + "— a !!!!\n",
        lambda t: t + "— a AAAAA\n",
        lambda t: t + "— a AAAAAAAA\n" * 100,
        lambda t: "x" * 1_000_000 + t,
    ],
)
def test_malformed_notes(spoil, signed):
    with pytest.raises(MalformedNote):
        note.parse(spoil(signed))


def test_every_changed_character_of_the_text_is_refused(keys, signed):
    for place in range(len(TEXT)):
        for other in ("A", "\n", "7"):
            if signed[place] != other:
                spoiled = signed[:place] + other + signed[place + 1 :]
                with pytest.raises((SignatureInvalid, MalformedNote, MalformedCheckpoint)):
                    note.open_note(spoiled, keys)


def test_keys_survive_their_files(paper):
    for signer in paper.signers():
        again = type(signer).from_pem(signer.name, signer.to_pem())
        assert note.vkey(again) == note.vkey(signer)
        assert isinstance(signer, note.Signer)
        assert note.Verifier.from_vkey(note.vkey(signer)).key_id == signer.key_id


def test_a_file_of_the_other_kind_is_refused(paper):
    ed, ml = paper.signers()
    for kind, pem in ((note.Ed25519Signer, ml.to_pem()), (note.MLDSA44Signer, ed.to_pem())):
        with pytest.raises(BadKey):
            kind.from_pem("o", pem)
        with pytest.raises(BadKey):
            kind.from_pem("o", b"no key")
        with pytest.raises(BadKey):
            kind.from_pem("o o", ed.to_pem())


def test_spoiled_vkeys(paper):
    good = paper.VKEYS[0]
    name, key_id, body = good.split("+", 2)
    raw = base64.b64decode(body)
    rsa = base64.b64encode(b"\x02" + raw[1:]).decode()
    for bad in (
        "", name, f"{name}+{key_id}", f"{name}+{key_id}+!", f"{name}+{key_id}+{body}A",
        f"{name}+{key_id.upper()}+{body}" if key_id.upper() != key_id else "x",
        f"{name}+00000000+{body}", f"{name}+{key_id}+{rsa}", f"x{good}", f"{good}\n", f" {good}",
        f"{name}+{key_id}+" + base64.b64encode(raw[:-1]).decode(), f"{name}+{key_id}+",
    ):  # fmt: skip
        with pytest.raises(BadKey):
            note.Verifier.from_vkey(bad)


def test_texts_that_cannot_be_signed(paper):
    for text in ("no newline", "tab\t\n"):
        with pytest.raises(MalformedNote):
            note.sign_note(text, paper.signers()[:1], 0)
    with pytest.raises(MalformedCheckpoint):
        note.sign_note("no checkpoint\n", paper.signers(), 0)


def test_a_timestamped_ed25519_key_signs_the_time():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ledger import cosignature

    key = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
    public = key.public_key().public_bytes_raw()
    witness = note.Verifier("w.example", note.ED25519_COSIGNATURE, public)
    payload = cosignature.pack(1234, key.sign(cosignature.ed25519_message(TEXT, 1234)))
    assert witness.verify(TEXT, payload) == 1234
    with pytest.raises(SignatureInvalid):
        witness.verify(TEXT, cosignature.pack(1235, payload[8:]))
