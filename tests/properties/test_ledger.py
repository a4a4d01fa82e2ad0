"""Laws of the ledger's formats: one spelling each, one tree however it grows."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ledger import leaf, merkle, note
from ledger.checkpoint import Checkpoint, valid_origin
from ledger.errors import LeafError, LedgerError, Malformed, ProofInvalid
from ledger.proof import Proof
from ledger.tiles import ENTRIES, Edge, Hashes, Tile, pack, parse_path, unpack

hashes = st.binary(min_size=32, max_size=32)
origins = st.text(min_size=1, max_size=30).filter(valid_origin)
sizes = st.integers(1, (1 << 63) - 1)
checkpoints = st.builds(Checkpoint, origins, sizes, hashes)
proofs = st.builds(
    Proof,
    st.none() | st.binary(max_size=80),
    st.integers(0, (1 << 63) - 1),
    st.lists(hashes, max_size=63).map(tuple),
    checkpoints.map(str),
)
tiles = st.builds(
    Tile, st.sampled_from([ENTRIES, *range(64)]), st.integers(0, 10**12), st.integers(1, 256)
)
entries = st.lists(st.binary(max_size=9), max_size=700)


def naive(row: list[bytes]) -> bytes:
    """RFC 6962 §2.1, as written there."""
    if not row:
        return hashlib.sha256(b"").digest()
    if len(row) == 1:
        return hashlib.sha256(b"\0" + row[0]).digest()
    k = 1
    while k * 2 < len(row):
        k *= 2
    return hashlib.sha256(b"\1" + naive(row[:k]) + naive(row[k:])).digest()


@given(checkpoints)
def test_a_checkpoint_reads_back(value):
    assert Checkpoint.parse(str(value)) == value


@given(proofs)
def test_a_proof_reads_back(value):
    assert Proof.parse(str(value)) == value


@given(tiles)
def test_a_tile_path_reads_back(value):
    assert parse_path(value.path()) == value


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_a_bundle_reads_back(value):
    assert unpack(pack(value), len(value)) == value


@given(st.data(), st.sampled_from([checkpoints, proofs]))
def test_one_changed_character_is_refused_or_means_something_else(data, kind):
    value = data.draw(kind)
    text = str(value)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8"))
    assume(text[place] != other)
    spoiled = text[:place] + other + text[place + 1 :]
    try:
        found = type(value).parse(spoiled)
    except Malformed:
        return
    assert found != value
    assert str(found) == spoiled


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    for parse in (Checkpoint.parse, Proof.parse, note.parse, note.Verifier.from_vkey, parse_path):
        try:
            parse(text)
        except Malformed:
            continue


@given(st.binary(max_size=60))
def test_any_bytes_are_a_leaf_or_refused(data):
    with pytest.raises(LeafError):
        leaf.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="ascii"), max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), max_size=5), json_values, max_size=5))
def test_canonical_bytes_are_those_of_rfc_8785(value):
    rfc8785 = pytest.importorskip("rfc8785")
    assert leaf.render(value) == rfc8785.dumps(value)


@given(st.lists(st.binary(max_size=5), max_size=70), st.data())
def test_the_tree_is_the_one_of_rfc_6962(rows, data):
    leaves = [merkle.leaf_hash(row) for row in rows]
    size = len(rows)
    root = merkle.root(leaves)
    assert root == naive(rows)
    assume(size)

    def perfect(level, index):
        return merkle.root(leaves[index << level : (index + 1) << level])

    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    path = merkle.inclusion_proof(index, size, perfect)
    merkle.verify_inclusion(leaves[index], index, size, path, root)
    grown = merkle.consistency_proof(old, size, perfect)
    merkle.verify_consistency(old, size, merkle.root(leaves[:old]), root, grown)
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        path[place] = bytes(32)
        with pytest.raises(ProofInvalid):
            merkle.verify_inclusion(leaves[index], index, size, path, root)


@given(entries, st.lists(st.integers(0, 700), max_size=5))
def test_a_log_is_the_same_however_it_grew(rows, cuts):
    whole, stepped, files = Edge(), Edge(), {}
    expected = whole.grow(rows)
    for cut in [*sorted(cut for cut in cuts if cut < len(rows)), len(rows)]:
        files.update(stepped.grow(rows[stepped.size : cut]))
    assert (stepped.root(), stepped.levels, stepped.bundle) == (
        whole.root(), whole.levels, whole.bundle,
    )  # fmt: skip
    assert {tile: files[tile] for tile in expected} == expected
    if rows:
        reader = Hashes(len(rows), expected.__getitem__)
        assert merkle.range_hash(0, len(rows), reader.perfect) == whole.root()


@given(st.text(max_size=40), st.integers(0, (1 << 63) - 1))
def test_a_signed_note_opens_to_its_text(text, time):
    text += "\n"
    signer = note.Ed25519Signer.generate("o", lambda count: b"s" * count)
    key = note.Verifier.from_vkey(note.vkey(signer))
    try:
        signed = note.sign_note(text, [signer], time)
    except LedgerError:
        return
    assert note.open_note(signed, [key]).text == text
