"""Leaves: canonical bytes, the envelope, and what each type must say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from ledger import bodies, leaf
from ledger.errors import LeafError

GOOD = {
    "id": "01890000-0000-7000-8000-000000000001",
    "type": "config.changed",
    "time": "2026-01-02T03:04:05.678Z",
    "node": "node-1",
    "actor": {"kind": "user", "id": "u7"},
    "idem": "config/1",
    "body": {"digest": "0" * 64},
}


def test_a_record_and_its_bytes():
    made = leaf.record(**GOOD)
    data = leaf.render(made)
    assert data == (
        b'{"actor":{"id":"u7","kind":"user"},"body":{"digest":"' + b"0" * 64 + b'"},'
        b'"id":"01890000-0000-7000-8000-000000000001","idem":"config/1","node":"node-1",'
        b'"time":"2026-01-02T03:04:05.678Z","type":"config.changed","v":1}'
    )
    assert leaf.parse(data) == made
    assert leaf.leaf_hash(data) == leaf.unref(leaf.ref(leaf.leaf_hash(data)))


@pytest.mark.parametrize(
    "value",
    [
        {}, {"a": [1, -2, True, None, "é\u2028\U0001f600\"\\\n\x1f\x7f/"]},
        {"b": {"a": []}, "B": 0},
        {"n": 2**53 - 1, "m": -(2**53) + 1}, {"10": 1, "9": 2, "_": 3, "A": 4, "a": 5},
    ],
)  # fmt: skip
def test_the_canonical_form_is_rfc_8785(value):
    rfc8785 = pytest.importorskip("rfc8785")
    assert leaf.render(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value",
    [{"a": 1.0}, {"a": 2**53}, {"é": 1}, {1: 2}, {"a": b"x"}, {"a": {1, 2}}, {"a": "\ud800"}],
)
def test_what_has_no_canonical_form(value):
    with pytest.raises(LeafError):
        leaf.render(value)


def test_size_and_depth_have_limits():
    fitting = {"a": "x" * (65_535 - 8)}
    assert len(leaf.render(fitting)) == 65_535
    with pytest.raises(LeafError, match="at most 65535"):
        leaf.render({"a": "x" * (65_535 - 7)})
    deep = []
    for _ in range(20):
        deep = [deep]
    with pytest.raises(LeafError, match="nested"):
        leaf.render({"a": deep})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"null", b"[" * 60_000, b"\xff", b'{"v":1,"v":1}', b'{"a":1e3}',
        b'{"a":NaN}', b'{"a":1} ', b'{"a":"\\u0041"}', b'{"b":1,"a":2}', b"1" * 5000,
    ],
)  # fmt: skip
def test_bytes_that_are_no_leaf(data):
    with pytest.raises(LeafError):
        leaf.parse(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "x"), ("id", "01890000-0000-7000-8000-00000000000A"), ("id", 7), ("type", "x.y"),
        ("type", ["config.changed"]), ("time", "2026-01-02T03:04:05Z"),
        ("time", "2026-01-02T03:04:05.678+00:00"), ("time", "2026-13-02T03:04:05.678Z"),
        ("time", datetime(2026, 1, 2)), ("node", ""), ("node", "a\nb"), ("idem", "x" * 201),  # noqa: DTZ001
        ("actor", {"kind": "robot", "id": "u"}), ("actor", {"kind": "user"}),
        ("actor", {"kind": ["user"], "id": "u"}), ("actor", {"kind": "user", "id": ""}),
        ("body", {}), ("body", {"digest": "x"}), ("body", {"digest": "0" * 64, "note": "x"}),
        ("subject", "1" * 64), ("study", "Mueller^Hans"), ("refs", [{"rel": "x", "leaf": "y"}]),
        ("refs", [{"rel": "log.opened", "leaf": "A" * 43 + "="}] * 2),
        ("refs", [{"rel": "nonsense", "leaf": "A" * 43 + "="}]),
    ],
)  # fmt: skip
def test_one_wrong_field_is_named(field, value):
    with pytest.raises(LeafError, match=field if field != "type" else "is not a type"):
        leaf.record(**{**GOOD, field: value})


def test_missing_and_unknown_fields():
    whole = leaf.record(**GOOD)
    for key in whole:
        with pytest.raises(LeafError, match=f"{key} is missing"):
            leaf.parse(leaf.render({k: v for k, v in whole.items() if k != key}))
    with pytest.raises(LeafError, match="sig is not a key"):
        leaf.parse(leaf.render({**whole, "sig": "x"}))
    for refs in ([], {}, "x", ["x"], [{"rel": "log.opened"}], [{"rel": 1, "leaf": "A" * 43 + "="}]):
        with pytest.raises(LeafError, match="refs"):
            leaf.parse(leaf.render({**whole, "refs": refs}))
    for body in ("x", []):
        with pytest.raises(LeafError, match="body"):
            leaf.parse(leaf.render({**whole, "body": body}))
    for v in (0, 2, True, "1"):
        with pytest.raises(LeafError, match="v must be 1"):
            leaf.parse(leaf.render({**whole, "v": v}))


def test_time_is_cut_to_milliseconds_and_moved_to_utc():
    time = datetime(2026, 1, 2, 4, 4, 5, 999_999, timezone(timedelta(hours=1)))
    assert leaf.stamp(time) == "2026-01-02T03:04:05.999Z"
    assert leaf.record(**{**GOOD, "time": time})["time"] == "2026-01-02T03:04:05.999Z"
    assert leaf.stamp(datetime(26, 1, 2, tzinfo=UTC)) == "0026-01-02T00:00:00.000Z"


def test_hashes_have_32_bytes():
    with pytest.raises(LeafError):
        leaf.ref(b"x")
    for bad in ("", "A" * 44, "A" * 42 + "B=", "é" * 44, "A" * 43):
        with pytest.raises(LeafError):
            leaf.unref(bad)


def test_every_step_of_a_story_is_a_leaf_and_each_required_part_is_required(site, paper):
    story = paper.Story(site).until("study.closed")
    for type in story.ORDER:
        record = leaf.parse(site.log.leaf(leaf.unref(story.refs[type])))
        kind = bodies.TYPES[type]
        for key in kind.required:
            spoiled = {**record, "body": {k: v for k, v in record["body"].items() if k != key}}
            with pytest.raises(LeafError, match=rf"body\.{key} is missing"):
                leaf.parse(leaf.render(spoiled))
        with pytest.raises(LeafError, match=r"body\.patient is not a key"):
            leaf.parse(leaf.render({**record, "body": {**record["body"], "patient": "x"}}))
        if kind.chain == bodies.BOTH:
            for name in ("subject", "study"):
                with pytest.raises(LeafError, match=f"{name} is missing"):
                    leaf.parse(leaf.render({k: v for k, v in record.items() if k != name}))
        elif kind.chain == bodies.NONE:
            with pytest.raises(LeafError, match="does not belong"):
                leaf.parse(leaf.render({**record, "subject": paper.SUBJECT}))
        if kind.refs:
            with pytest.raises(LeafError, match="refs: one to"):
                leaf.parse(leaf.render({k: v for k, v in record.items() if k != "refs"}))


OTHERS = {
    "key.rotated": {"keys": ["a+b"]},
    "model.suspended": {"model": "0" * 64, "reason": "rollback"},
    "model.retired": {"model": "0" * 64, "reason": "replaced"},
    "study.quarantined": {"reason": "second-identity"},
    "consent.granted": {"document": "A" * 43 + "=", "status": "active", "source": "fhir"},
    "consent.withdrawn": {"document": "A" * 43 + "="},
    "inference.failed": {"model": "0" * 64, "reason": "timeout"},
    "log.continued": {
        "schema": 1,
        "origin": "a/2",
        "previous": "a",
        "size": 7,
        "root": "A" * 43 + "=",
    },
    "log.closed": {"reason": "restored", "next": "a/2"},
    "consent.amended": {"document": "A" * 43 + "=", "status": "active", "source": "fhir"},
    "override.reviewed": {"outcome": "justified", "by": "u8"},
    "result.unconfirmed": {"destination": "pacs", "kind": "sr", "reason": "not-found"},
    "result.superseded": {"destination": "pacs", "kind": "sr", "reason": "newer-result"},
    "result.recalled": {"destination": "pacs", "kind": "sr", "reason": "withdrawn"},
    "witness.status": {"witness": "north.example", "state": "refused", "behind": 3},
    "subject.erased": {"basis": "Art. 17(1)(b)", "expiry": None},
    "access.disclosed": {"recipient": "r", "purpose": "TREAT", "what": {"n": 1}, "basis": "law"},
    "model.assessed": {"model": "a" * 64, "report": "b" * 64, "by": "u7"},
}


@pytest.mark.parametrize("type", sorted(OTHERS))
def test_the_other_types(type, paper):
    kind = bodies.TYPES[type]
    rest = {}
    if kind.refs:
        rest["refs"] = paper.refs(*((min(group), "A" * 43 + "=") for group in kind.refs))
    if kind.chain in (bodies.BOTH, bodies.SUBJECT):
        rest["subject"] = paper.SUBJECT
    if kind.chain in (bodies.BOTH, bodies.STUDY):
        rest["study"] = paper.STUDY
    assert leaf.parse(paper.made(1, type, OTHERS[type], **rest))["body"] == OTHERS[type]


def test_the_types_are_the_ones_that_are_documented(paper):
    assert set(bodies.TYPES) == {*paper.Story.ORDER, *OTHERS, "log.opened", "config.changed"}


def test_an_override_names_its_reason(paper):
    rest = {"subject": paper.SUBJECT, "study": paper.STUDY}
    with pytest.raises(LeafError, match=r"body\.override"):
        paper.made(1, "consent.checked", paper.permit(basis="override"), **rest)
    with pytest.raises(LeafError, match=r"body\.override"):
        paper.made(1, "consent.checked", paper.permit(basis="override", override={}), **rest)
    by = {"reason": "emergency", "by": "u7"}
    paper.made(1, "consent.checked", paper.permit(basis="override", override=by), **rest)


@pytest.mark.parametrize(
    ("type", "change"),
    [
        ("input.sealed", {"route": {"model": "x", "roles": []}}),
        ("input.sealed", {"route": "x"}),
        ("input.sealed", {"counts": {"": 1}}),
        ("input.sealed", {"evidence": "free text here"}),
        ("input.sealed", {"evidence": {"a": {"b": {"c": {"d": {"e": 1}}}}}}),
        ("consent.checked", {"decision": "maybe"}),
        ("consent.checked", {"reason": "Hans Mueller refused"}),
        ("consent.checked", {"valid_until": "tomorrow"}),
        ("result.composed", {"attributes": {"00100010": "Mueller"}}),
        ("result.composed", {"attributes": {"PatientName": "A" * 43 + "="}}),
        ("result.composed", {"revision": -1}),
        ("result.composed", {"revision": True}),
        ("result.composed", {"sop_class": "1"}),
        ("study.received", {"modalities": ["C T"]}),
        ("study.received", {"modalities": "CT"}),
    ],
)
def test_values_of_another_shape_are_refused(type, change, site, paper):
    story = paper.Story(site).until(paper.Story.ORDER[paper.Story.ORDER.index(type) - 1])
    with pytest.raises(LeafError, match=rf"body\.{next(iter(change))} must be"):
        story.tell(type, change)


def test_no_shape_admits_a_name_where_a_code_is_asked():
    for text in ("Mueller^Hans", "Hans Mueller", "Müller", "", "x" * 101):
        assert not bodies.CODE.holds(text)
