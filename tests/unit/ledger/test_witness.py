"""The witness protocol: one spelling, and an answer for each way to be wrong."""

from __future__ import annotations

import base64

import pytest

from ledger import merkle, note, witness
from ledger.checkpoint import Checkpoint
from ledger.errors import MalformedNote, MalformedRequest, SignatureInvalid
from ledger.witness import Reply, Request, Seen

ORIGIN = "log.example/one"
LEAVES = [merkle.leaf_hash(bytes([n])) for n in range(20)]


def seed(name):
    return lambda count: (name.encode() * count)[:count]


SIGNERS = [
    note.Ed25519Signer.generate(ORIGIN, seed("a")),
    note.MLDSA44Signer.generate(ORIGIN, seed("b")),
]
KEYS = [note.Verifier(s.name, s.algorithm, s.public) for s in SIGNERS]
COSIGNERS = [
    note.Ed25519Cosigner.generate("witness.example/w", seed("c")),
    note.MLDSA44Signer.generate("witness.example/w", seed("d")),
]
WITNESS = [note.Verifier(s.name, s.algorithm, s.public) for s in COSIGNERS]


def point(size, root=None):
    return Checkpoint(ORIGIN, size, merkle.root(LEAVES[:size]) if root is None else root)


def signed(size, root=None, signers=SIGNERS):
    return note.sign_note(str(point(size, root)), signers, 7)


def perfect(level, index):
    return merkle.root(LEAVES[index << level : (index + 1) << level])


def proof(old, new):
    return tuple(merkle.consistency_proof(old, new, perfect))


def test_a_request_is_read_as_it_was_written():
    for old, new in ((0, 5), (3, 5), (5, 5), (8, 19), (7, 20)):
        request = Request(old, proof(old, new), signed(new))
        assert Request.parse(str(request).encode()) == request
    assert str(Request(3, (b"\x01" * 32,), "x\n")) == (
        "old 3\n" + base64.b64encode(b"\x01" * 32).decode() + "\n\nx\n"
    )


HASH = base64.b64encode(bytes(32)).decode()
SPARE = HASH[:-2] + "B="  # the same 32 bytes, spelled with a bit that base64 does not use


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n", b"old 1", b"old 1\n", b"old 1\n\n", b"old  1\n\nx\n", b"old 01\n\nx\n",
        b"old -1\n\nx\n", b"old +1\n\nx\n", b"old 1 \n\nx\n", b" old 1\n\nx\n", b"OLD 1\n\nx\n",
        b"old 1\r\n\r\nx\n", b"old 9223372036854775808\n\nx\n", b"old 99999999999999999999\n\nx\n",
        "old ١\n\nx\n".encode(), b"new 1\n\nx\n", b"old 1\n\xff\n\nx\n", b"\nold 1\n\nx\n",
        f"old 1\n{HASH[:-1]}\n\nx\n".encode(), f"old 1\n{SPARE}\n\nx\n".encode(),
        f"old 1\n{HASH} \n\nx\n".encode(), f"old 1\n{HASH}{HASH}\n\nx\n".encode(),
        b"old 1\nAAAA\n\nx\n", ("old 1\n" + f"{HASH}\n" * 64 + "\nx\n").encode(),
    ],
)  # fmt: skip
def test_another_spelling_is_no_request(body):
    with pytest.raises(MalformedRequest):
        Request.parse(body)


def test_sixty_three_hashes_are_a_request():
    assert len(Request.parse(("old 1\n" + f"{HASH}\n" * 63 + "\nx\n").encode()).proof) == 63


def judged(old, new, hashes, seen, root=None):
    reply = witness.judge(Request(old, hashes, ""), point(new, root), seen)
    return None if reply is None else reply.status


def seen(size):
    return Seen(size, merkle.root(LEAVES[:size]))


def test_what_is_cosigned_and_what_is_not():
    assert judged(0, 5, (), seen(0)) is None
    assert judged(0, 0, (), seen(0)) is None
    assert judged(5, 5, (), seen(5)) is None
    assert judged(5, 13, proof(5, 13), seen(5)) is None
    assert judged(8, 16, proof(8, 16), seen(8)) is None
    other = merkle.root(LEAVES[1:6])
    assert judged(6, 5, (), seen(6)) == 400  # old above the size
    assert judged(6, 5, (), seen(0)) == 400
    assert judged(0, 5, (), seen(3)) == 409
    assert judged(4, 5, proof(4, 5), seen(3)) == 409
    assert judged(3, 5, proof(3, 5), seen(0)) == 409
    assert judged(5, 5, (), seen(5), other) == 422  # one size, two roots
    assert judged(5, 5, proof(3, 5), seen(5)) == 422
    assert judged(0, 5, (HASH.encode()[:32],), seen(0)) == 422  # a proof from nothing
    assert judged(3, 5, (), seen(3)) == 422
    assert judged(3, 5, proof(3, 5)[:-1], seen(3)) == 422
    assert judged(3, 5, (*proof(3, 5), bytes(32)), seen(3)) == 422
    assert judged(3, 5, proof(3, 5), Seen(3, bytes(32))) == 422  # it saw another beginning
    assert judged(3, 5, proof(3, 5), seen(3), other) == 422
    conflict = witness.judge(Request(1, (), ""), point(5), seen(3))
    assert conflict == Reply(409, "3\n", "text/x.tlog.size")


def test_a_checkpoint_that_cannot_be_read_has_its_status():
    assert witness.readable(str(point(5))) == point(5)
    root = base64.b64encode(bytes(32)).decode()
    for text, status in (
        (f"{ORIGIN}\n0\n{root}\n", 422),
        (f"{ORIGIN}\n0\n{root}\nmore\n", 400),
        (f"{ORIGIN}\n0\nAAAA\n", 400),
        (f"{ORIGIN}\n05\n{root}\n", 400),
        (f"{ORIGIN}\n5\n{root}\nextension\n", 400),
        (f"{ORIGIN}\n5\n", 400),
    ):
        assert witness.readable(text).status == status, text


def test_only_the_log_moves_its_record():
    stranger = note.Ed25519Signer.generate(ORIGIN, seed("z"))
    text = signed(5)
    assert witness.authentic(text, KEYS) == text
    more = text + str(note.Line("x.example", b"1234", b"5"))
    assert witness.authentic(more, KEYS) == text  # unknown lines are left out
    assert witness.authentic(text, KEYS[:1]) == note.sign_note(str(point(5)), SIGNERS[:1], 7)
    for wrong in (
        signed(5, signers=[stranger]),
        signed(5, signers=SIGNERS[:1]),  # the post-quantum one was stripped
        signed(5, signers=SIGNERS[1:]),
        signed(5).replace("\n5\n", "\n6\n"),
    ):
        with pytest.raises(SignatureInvalid):
            witness.authentic(wrong, KEYS)


def lines(text, signers=COSIGNERS, time=1000):
    body = text.partition("\n\n")[0] + "\n"
    made = [note.Line(s.name, s.key_id, s.sign(body.encode(), time)) for s in signers]
    return "".join(map(str, made))


def test_cosignatures_count_once_they_verify():
    text = signed(5)
    found = witness.cosignatures(text, lines(text).encode(), WITNESS)
    assert {(key.algorithm, time) for _, key, time in found} == {(4, 1000), (6, 1000)}
    stranger = note.Ed25519Cosigner.generate("witness.example/w", seed("y"))
    grease = lines(text, [stranger]) + lines(text)
    assert len(witness.cosignatures(text, grease.encode(), WITNESS)) == 2
    assert len(witness.cosignatures(text, lines(text).encode(), WITNESS[:1])) == 1
    for body in (lines(signed(6)), lines(text, [stranger]), lines(text) + lines(signed(6))):
        with pytest.raises(SignatureInvalid):
            witness.cosignatures(text, body.encode(), WITNESS)
    for body in (b"", b"ok\n", b"\xff\n", lines(text).encode()[:-1], lines(text).encode() + b"\n"):
        with pytest.raises(MalformedNote):
            witness.cosignatures(text, body, WITNESS)


def test_a_plain_log_signature_is_no_cosignature():
    text = signed(5)
    plain = note.Ed25519Signer.generate("witness.example/w", seed("c"))
    key = note.Verifier(plain.name, plain.algorithm, plain.public)
    with pytest.raises(SignatureInvalid):
        witness.cosignatures(text, lines(text, [plain]).encode(), [key])


def test_a_conflict_says_a_size_or_nothing():
    assert witness.conflict("text/x.tlog.size", b"0\n") == 0
    assert witness.conflict("text/x.tlog.size", b"50\n") == 50
    for kind, body in (
        ("text/plain", b"50\n"), ("text/x.tlog.size; charset=utf-8", b"50\n"),
        ("text/x.tlog.size", b"50"), ("text/x.tlog.size", b"050\n"), ("text/x.tlog.size", b""),
        ("text/x.tlog.size", b"-1\n"), ("text/x.tlog.size", b"9223372036854775808\n"),
        ("text/x.tlog.size", b"\xff\n"), ("text/x.tlog.size", b"5\n5\n"),
    ):  # fmt: skip
        assert witness.conflict(kind, body) is None
