"""The quick reader of plain leaves never accepts what the slow one refuses, and reads the same."""

from __future__ import annotations

import forger
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import bodies, leaf, plain
from ledger.errors import LeafError

HASH = forger.value("x")
SHAPES = {
    "CODE": "abc", "LABEL": "a label", "COUNT": 7, "DIGEST": "a" * 64, "HASH": HASH,
    "TAG": "00100010", "UID": "1.2.3", "WHEN": "2026-01-02T03:04:05.678Z", "FLAG": True,
    "LABELS": ["a", "b c"], "CODES": ["a", "b"], "FACTS": {"a": 1, "b": {"c": [None, "x"]}},
    "LIST": [1, {"leaf": HASH}], "SAID": {"status": "0x0000"}, "MAYBE_WHEN": None,
    "ROUTE": {"model": "b" * 64, "roles": ["ct"]}, "ATTRIBUTES": {"00100010": HASH},
    "OVERRIDE": {"by": "u7", "reason": "btg"},
}  # fmt: skip
EXAMPLE = {id(getattr(bodies, name)): value for name, value in SHAPES.items()}


def example(shape):
    return EXAMPLE.get(id(shape), shape.words.split(" ")[0])


def leaves():
    """Of each type one leaf with every key it may have, and one with none too many."""
    for name, kind in bodies.TYPES.items():
        for keys in ({**kind.optional, **kind.required}, kind.required):
            record = {
                "v": 1, "type": name, "id": "01890000-0000-7000-8000-000000000001",
                "time": "2026-01-02T03:04:05.678Z", "node": "node 1", "idem": "a/b",
                "actor": {"kind": "user", "id": "u7"},
                "body": {key: example(shape) for key, shape in keys.items()},
            }  # fmt: skip
            rels = [sorted(group)[0] for group in kind.refs]
            if rels:
                record["refs"] = [{"rel": rel, "leaf": HASH} for rel in rels]
            for whose in ("subject", "study"):
                if kind.chain in (bodies.BOTH, whose) or (
                    kind.chain != bodies.NONE and keys is not kind.required
                ):
                    record[whose] = "urn:radseal:x:" + "1" * 64
            yield leaf.render(record)


LEAVES = list(leaves())
PIECES = [
    b'"a":1,', b'"zz":{},', b"1e3", b"-0", b"01", b"true", b"[[[[[1]]]]]", b"9007199254740992",
    b"9007199254740991", b'{"b":1,"a":2}',
]  # fmt: skip


def slow(data):
    try:
        return leaf._parse_any(data)
    except LeafError:
        return None


def quick(data):
    try:
        return plain.parse(data)
    except LeafError:
        return None


@pytest.mark.parametrize("data", LEAVES, ids=lambda data: leaf.parse(data)["type"])
def test_every_type_is_read_quickly_and_alike(data):
    assert quick(data) == slow(data) is not None


@given(st.sampled_from(LEAVES), st.data())
def test_what_it_accepts_the_slow_one_reads_alike(data, draw):
    """Bytes replaced, cut out, put in, doubled: often no leaf, sometimes another one."""
    bits = st.sampled_from([*b'{}[],:"\\ 0129.-eazAZ_\x00\x7f\xc3\xa9', *range(32)])
    spoiled = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(spoiled) - 1))
        until = draw.draw(st.integers(at, min(len(spoiled), at + 40)))
        spoiled[at:until] = draw.draw(st.one_of(
            st.lists(bits, max_size=3).map(bytes),
            st.just(bytes(spoiled[at:until] * 2)),
            st.sampled_from(PIECES),
        ))  # fmt: skip
    found = quick(bytes(spoiled))
    assert found is None or found == slow(bytes(spoiled))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.replace(b'"counts":{', b'"counts":{"z":1,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":1,"a":1,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":01,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":-0,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":1.0,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":nan,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":9007199254740992,'),
        lambda b: b.replace(b'"counts":{"a":1,', b'"counts":{"a":"' + b"x" * 201 + b'",'),
        lambda b: b.replace(b'"generation":7', b'"generation":7,"unknown":7'),
        lambda b: b.replace(b'"generation":7', b'"generation":7,'),
        lambda b: b.replace(b'"generation":7', b'"generation":9999999999999999'),
        lambda b: b.replace(b"2026-01-02", b"2026-02-30"),
        lambda b: b.replace(b"03:04:05", b"24:04:05"),
        lambda b: b.replace(b'"v":1}', b'"v":1} '),
        lambda b: b.replace(b'"roles":["ct"]', b'"roles":["ct",]'),
    ],
)
def test_what_only_looks_like_a_leaf(change):
    good = next(data for data in LEAVES if b"input.sealed" in data and b"decoders" in data)
    data = change(good)
    assert data != good
    assert quick(data) is None
    assert slow(data) is None


@pytest.mark.parametrize(
    "refs",
    [
        [("study.received", HASH)] * 2, [("study.nothing", HASH)], [("previous", HASH)],
        [("study.received", HASH), ("nothing", HASH)], [("study.received", HASH[:-2] + "B=")],
        [],
    ],
)  # fmt: skip
def test_references_are_looked_at(refs):
    good = next(data for data in LEAVES if b"input.sealed" in data)
    whole = f'"refs":[{{"leaf":"{HASH}","rel":"study.received"}}]'.encode()
    listed = ",".join(f'{{"leaf":"{one}","rel":"{rel}"}}' for rel, one in refs)
    data = good.replace(whole, f'"refs":[{listed}]'.encode())
    assert data != good
    assert quick(data) is None
    assert slow(data) is None


def test_hostile_leaves_cost_no_more_than_honest_ones():
    """Of the size of the largest leaf, almost right: no pattern may try many ways."""
    good = next(data for data in LEAVES if b"input.sealed" in data and b"decoders" in data)
    fillings = (b'{"a":1,' * 4000, b'{"a":[' * 8000, b'{"a":"b","c":' * 4000, b'"' * 60_000,
                b"[" * 60_000, b'{"a":[1,1,1,1],' * 4000, b'["a",' * 10_000)  # fmt: skip
    for filling in fillings:
        for key in (b'"counts":', b'"evidence":', b'"roles":'):
            data = good.replace(key, key + filling[:60_000])
            assert quick(data) is None  # what tries many ways runs into pytest's time limit
