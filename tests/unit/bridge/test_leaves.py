"""Leaves that no stage said before: settings, amended consent, superseded results, quarantine.

And what none of them may hold: a patient, or a hash of one that anybody could try.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import BERT, Bench, changed, consent, every, images

from bridge import acts, grant, in_force, site
from bridge.audit.disclose import input_path
from bridge.commitments import instance_commitment
from bridge.consent.document import parse
from bridge.errors import Refused
from bridge.record import input_root
from bridge.store import settings
from bridge.store.database import reading
from bridge.study import StudyState
from ledger import merkle
from ledger.errors import ProofInvalid

UID = str(images(1)[0].StudyInstanceUID)
NO_PICTURE = {"deployment": {"results": {"secondary_capture": False}}}


def said(desk: Bench, kind: str) -> list[dict[str, Any]]:
    return [leaf for leaf in desk.leaves() if leaf["type"] == kind]


def keep(desk: Bench, data: bytes) -> str:
    return grant.keep(desk.rooms, data, parse(data), None, by="clerk")


# --- settings in force -----------------------------------------------------------------------


def configured(desk: Bench, *lines: str) -> None:
    """Start anew with these lines in site.toml, as the service does."""
    path = desk.settings.folder / "site.toml"
    first = path.read_text(encoding="utf-8").split("# changed\n")[0]
    path.write_text(first + "# changed\n" + "\n".join(lines), encoding="utf-8")
    desk.rooms = replace(desk.rooms, site=site.read(desk.settings.folder))
    in_force.say_changed(desk.rooms)


def test_settings_are_said_at_the_first_start_and_when_they_changed(desk: Bench) -> None:
    assert said(desk, "config.changed") == []  # `init` alone says nothing: they may be edited
    for lines in ([], [], ["[completion]", "quiet_seconds = 7"], ["[completion]",
                  "quiet_seconds = 7"], [], ["[completion]", "quiet_seconds = 7"]):  # fmt: skip
        configured(desk, *lines)
    first, *later = (leaf["body"] for leaf in said(desk, "config.changed"))
    assert set(first) == {"digest"}
    assert [one["keys"] for one in later] == [["completion.quiet_seconds"]] * 3
    assert [one["previous"] for one in later] == [
        first["digest"], later[0]["digest"], later[1]["digest"],
    ]  # fmt: skip
    assert later[0]["digest"] == later[2]["digest"] != later[1]["digest"] == first["digest"]
    desk.verify()


def test_a_source_that_comes_and_goes_is_named(desk: Bench) -> None:
    configured(desk)
    configured(desk, "[[sources]]", 'name = "ct1"', 'ae_title = "CT1"')
    assert said(desk, "config.changed")[-1]["body"]["keys"] == ["sources.ct1"]


def test_a_crash_between_leaf_and_table_says_nothing_twice(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(desk)
    with monkeypatch.context() as patch:
        patch.setattr(settings, "keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            configured(desk, "[completion]", "quiet_seconds = 7")
    configured(desk, "[completion]", "quiet_seconds = 7")
    configured(desk, "[completion]", "quiet_seconds = 8")
    assert [leaf["body"].get("keys") for leaf in said(desk, "config.changed")] == [
        None, ["completion.quiet_seconds"], ["completion.quiet_seconds"],
    ]  # fmt: skip
    with reading(desk.rooms.database) as connection:
        assert settings.kept(connection)["completion.quiet_seconds"] == "8.0"


def test_no_password_is_kept_or_counted(desk: Bench) -> None:
    def values(password: str) -> dict[str, str]:
        url = f"postgresql+psycopg://radseal:{password}@db.example.org:5432/radseal"
        with_url = desk.rooms.site.model_copy(
            update={"database": desk.rooms.site.database.model_copy(update={"url": url})}
        )
        return in_force.effective(with_url)

    assert values("s3cret") == values("other")
    assert values("p@ss:w/rd")["database.url"].startswith('"postgresql+psycopg://radseal@')
    assert "s3cret" not in json.dumps(values("s3cret"))


# --- consent ---------------------------------------------------------------------------------


def version(answer: str, number: int | None = None, **tags: Any) -> bytes:
    tree = json.loads(consent(answer, text="anna-1")) | tags
    if number is not None:
        tree["meta"] = {"versionId": str(number)}
    return json.dumps(tree).encode()


@pytest.fixture
def sealed_desk(desk: Bench) -> Bench:
    desk.model(NO_PICTURE)
    return desk


def walked(desk: Bench, study: str) -> str:
    sent = images(3, study=study)
    desk.receive(*sent)
    desk.walk(str(sent[0].StudyInstanceUID))
    return str(desk.study(str(sent[0].StudyInstanceUID)).state)


def test_a_newer_version_takes_the_place_of_the_older_one(sealed_desk: Bench) -> None:
    desk = sealed_desk
    first = keep(desk, version("permit", 1))
    assert walked(desk, "one") == StudyState.DELIVERED
    second = keep(desk, version("deny", 2))
    assert walked(desk, "two") == StudyState.DENIED
    third = keep(desk, version("permit", 3))
    assert walked(desk, "three") == StudyState.DELIVERED
    (granted,) = said(desk, "consent.granted")
    amended = said(desk, "consent.amended")
    assert [one["body"]["version"] for one in (granted, *amended)] == ["1", "2", "3"]
    assert [one["refs"][0]["rel"] for one in amended] == ["previous", "previous"]
    states = {row.id: (row.status, row.withdrawn_at is None) for row in desk.rows("consents")}
    assert states == {
        first: ("replaced", False), second: ("replaced", False), third: ("active", True),
    }  # fmt: skip
    used = said(desk, "consent.checked")[-1]
    assert {ref["rel"] for ref in used["refs"]} == {
        "input.sealed", "consent.amended", "consent.granted",
    }  # fmt: skip
    grant.withdraw(desk.rooms, third)
    (withdrawn,) = said(desk, "consent.withdrawn")
    assert {ref["rel"] for ref in withdrawn["refs"]} == {"consent.amended", "consent.granted"}
    desk.verify()


@pytest.mark.parametrize(
    ("kept", "older"),
    [
        (version("permit", 3), version("permit", 2)),
        (version("permit", dateTime="2026-02-02"), version("permit", dateTime="2026-01-31")),
    ],
)
def test_an_older_version_is_refused(desk: Bench, kept: bytes, older: bytes) -> None:
    keep(desk, kept)
    with pytest.raises(Refused, match="newer version"):
        keep(desk, older)
    assert len(desk.rows("consents")) == 1
    assert said(desk, "consent.amended") == []


def test_the_same_text_again_is_the_same_document(desk: Bench) -> None:
    assert keep(desk, version("permit", 1)) == keep(desk, version("permit", 1))
    assert len(said(desk, "consent.granted")) == 1
    assert said(desk, "consent.amended") == []


def test_documents_of_other_names_stand_beside_each_other(desk: Bench) -> None:
    keep(desk, version("permit"))
    keep(desk, consent("permit", text="anna-2"))
    keep(desk, consent("permit", BERT, text="anna-1"))
    assert len(said(desk, "consent.granted")) == 3


def test_an_amendment_that_a_crash_hit_is_said_once(
    desk: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(desk, version("permit", 1))
    with monkeypatch.context() as patch:
        patch.setattr(
            "bridge.store.catalog.add_consent",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            keep(desk, version("permit", 2))
    keep(desk, version("permit", 2))
    assert len(said(desk, "consent.amended")) == 1
    assert sorted(row.status for row in desk.rows("consents")) == ["active", "replaced"]


def test_a_leaf_says_codes_of_known_tables_and_never_a_documents_own_words(desk: Bench) -> None:
    tree = json.loads(version("permit", 1))
    canary = {"system": "urn:oid:1.2", "code": "Canarius", "display": "Canarius"}
    tree["category"].append({"coding": [canary], "text": "Canarius"})
    tree["provision"]["purpose"].append(canary)
    tree["policy"].insert(0, {"uri": "https://example.org/Canarius"})
    keep(desk, json.dumps(tree).encode())
    (leaf,) = said(desk, "consent.granted")
    assert "Canarius" not in json.dumps(leaf)
    assert {key: leaf["body"][key] for key in ("base", "purposes", "category", "scope",
                                               "policy", "version")} == {
        "base": "permit", "purposes": ["TREATDS"], "category": ["59284-0"],
        "scope": "patient-privacy", "version": "1",
        "policy": "https://profiles.ihe.net/ITI/PCF/Policy-basic-normal",
    }  # fmt: skip


# --- results and studies ---------------------------------------------------------------------


def test_a_newer_generation_supersedes_what_the_destination_holds(
    new_site: Callable[..., Bench], archive: Callable[..., Any]
) -> None:
    pacs = archive("PACS")
    desk = new_site(pacs.toml())
    desk.model(NO_PICTURE)
    sent = images(4)
    desk.receive(*sent[:3])
    desk.walk(UID)
    assert said(desk, "result.superseded") == []
    desk.receive(*sent[3:])
    desk.walk(UID)
    leaves = desk.leaves()
    superseded = said(desk, "result.superseded")
    assert {leaf["body"]["kind"] for leaf in superseded} == {"sr", "seg"}
    assert {leaf["body"]["reason"] for leaf in superseded} == {"newer-generation"}
    first = {base64.b64encode(merkle.leaf_hash(_bytes(one))).decode()
             for one in leaves if one["type"] == "result.delivered"}  # fmt: skip
    assert {ref["leaf"] for leaf in superseded for ref in leaf["refs"]} <= first
    assert desk.codes(UID).count("result.superseded") == 2
    desk.verify()


def _bytes(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_images_set_apart_are_said_with_a_code(sealed_desk: Bench) -> None:
    desk = sealed_desk
    sent = images(5)
    other = changed(sent[3], PatientID="B-2")
    nobody = changed(sent[4], PatientID="")
    twin = changed(sent[0], PixelData=bytes(len(sent[0].PixelData)))
    desk.receive(*sent[:3], other, nobody, twin)
    desk.walk(UID)
    told = {leaf["body"]["reason"]: leaf["body"]["instances"]
            for leaf in said(desk, "study.quarantined")}  # fmt: skip
    assert told == {"second-identity": 1, "no-patient-id": 1, "conflict": 1}
    desk.finish(UID)
    assert len(said(desk, "study.quarantined")) == 3
    desk.verify()


def test_a_model_that_is_retired_is_said_so(sealed_desk: Bench) -> None:
    desk = sealed_desk
    (row,) = desk.rows("models")
    desk.rooms.lifecycle.act(row.id, "retire", desk.rooms.now(), by="dr-approver")
    (leaf,) = said(desk, "model.retired")
    assert (leaf["body"]["model"], leaf["body"]["by"]) == (row.digest, "dr-approver")
    desk.verify()


# --- privacy ---------------------------------------------------------------------------------


def spellings(value: str) -> Iterator[bytes]:
    """The ways in which somebody would write a value before hashing it."""
    texts = {value, value.lower(), value.upper(), value.replace("^", " "), value.replace("-", "")}
    texts |= {value.replace("^", ", "), " ".join(reversed(value.split("^")))}
    texts |= {f"GH|{value}", f"GH{value}", f"GH/{value}", f"GH^{value}"}
    for one in texts:
        yield from (one.encode(), f"{one}\0".encode(), f"{one} ".encode(), one.encode("utf-16-le"))


def hashes(data: bytes) -> Iterator[bytes]:
    for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "sha3_256"):
        yield hashlib.new(name, data, usedforsecurity=False).digest()
    yield hashlib.sha256(hashlib.sha256(data).digest()).digest()
    yield merkle.leaf_hash(data)  # a tree over plain values hashes them so


def forms(digest: bytes) -> Iterator[str]:
    """A digest as it can stand in JSON; the first 12 characters are enough to know it."""
    yield digest.hex()[:12]
    yield digest.hex().upper()[:12]
    yield base64.b64encode(digest).decode()[:12]
    yield base64.urlsafe_b64encode(digest).decode()[:12]
    yield base64.b32encode(digest).decode()[:12]


def guesses(sent: list[Any], files: list[Path]) -> dict[str, str]:
    """Every form of every hash of what names the patient, and what it is a hash of."""
    tags = ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID",
            "SeriesInstanceUID", "SOPInstanceUID", "StudyDescription", "StudyDate")  # fmt: skip
    values = {str(one[tag].value) for one in sent for tag in tags if tag in one and one[tag].value}
    found = {
        form: f"a hash of {value!r}"
        for value in values
        for spelling in spellings(value)
        for digest in hashes(spelling)
        for form in forms(digest)
    }
    for one, file in itertools.zip_longest(sent, files):
        for data in filter(None, (one and one.PixelData, file and file.read_bytes())):
            for digest in hashes(data):
                found |= dict.fromkeys(forms(digest), "a hash of an image")
    return found


def test_no_leaf_holds_a_patient_or_a_hash_that_can_be_tried(
    new_site: Callable[..., Bench], archive: Callable[..., Any]
) -> None:
    pacs = archive("PACS")
    desk = new_site(pacs.toml())
    desk.model(NO_PICTURE)
    in_force.say_changed(desk.rooms)
    keep(desk, version("permit", 1))
    sent = images(4, StudyDescription="Canary study")
    desk.receive(*sent[:3], changed(sent[3], PatientID="B-2"))
    desk.walk(UID)
    acts.accept(desk.rooms, UID, "clerk")
    desk.walk(UID)
    desk.receive(*every(sent[:3], PatientID="C-3"))
    keep(desk, version("permit", 2))
    digests = [row.dataset_sha256 for row in desk.rows("instances")]
    inputs = [row.input_digest for row in desk.rows("routes") if row.input_digest]
    files = sorted((desk.settings.folder / "instances").rglob("*.dcm"))
    files += sorted((desk.settings.folder / "artifacts").rglob("*.dcm"))
    tried = guesses([*sent, *every(sent, PatientID="B-2"), *every(sent, PatientID="C-3")], files)
    tried |= {form: "a digest of ours" for hex_ in (*digests, *inputs)
              for form in forms(bytes.fromhex(hex_))}  # fmt: skip
    leaves = desk.leaves()
    assert len({leaf["type"] for leaf in leaves}) > 12
    for leaf in leaves:
        text = json.dumps(leaf)
        known = {form for form in tried if form in text}
        assert not known, (leaf["type"], {tried[form] for form in known})
        for name in ("Alpha", "Anna", "A-1", "ACC-1", "Canary", "2.25.", "1.2.826"):
            assert name not in text, leaf["type"]
        assert not re.search(r"\b(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])\b", text), text


def test_the_search_finds_a_hash_where_there_is_one() -> None:
    """Else its silence proves nothing."""
    sent = images(1)
    tried = guesses(sent, [])
    for planted in (
        hashlib.sha256(b"A-1").hexdigest(),
        base64.b64encode(hashlib.md5(b"GH|A-1").digest()).decode(),  # noqa: S324
        hashlib.sha1(b"Alpha Anna").hexdigest(),  # noqa: S324
        hashlib.sha256(sent[0].PixelData).hexdigest(),
        base64.b64encode(hashlib.sha256(UID.encode()).digest()).decode(),
    ):
        assert any(form in f'{{"x":"{planted}"}}' for form in tried)


# --- one image of the input, without the others ----------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_one_image_is_shown_to_have_been_read_without_the_others(
    sealed_desk: Bench, count: int
) -> None:
    desk = sealed_desk
    sent = images(count)
    desk.receive(*sent)
    desk.walk(UID)
    (leaf,) = said(desk, "input.sealed")
    root = base64.b64decode(leaf["body"]["root"])
    chain = desk.rooms.record.chain(desk.generation(UID).subject_ref, UID)
    pairs = [(row.sop_instance_uid, row.dataset_sha256) for row in desk.rows("instances")]
    assert input_root(chain.key, pairs) == root
    for uid, digest in pairs:
        place = sorted(pairs).index((uid, digest))
        path = input_path(chain.key, sorted(pairs), place)
        mine = merkle.leaf_hash(instance_commitment(chain.key, bytes.fromhex(digest)))
        merkle.verify_inclusion(mine, place, count, path, root)
        others = {merkle.leaf_hash(bytes.fromhex(d)) for u, d in pairs if u != uid}
        assert others.isdisjoint(path)
        wrong = merkle.leaf_hash(instance_commitment(chain.key, bytes(32)))
        with pytest.raises(ProofInvalid):
            merkle.verify_inclusion(wrong, place, count, path, root)
