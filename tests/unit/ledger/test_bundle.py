"""ledger.bundle: proofs under one checkpoint, bound to the leaf that says what was disclosed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ledger import archive, bundle, leaf, merkle, note
from ledger.__main__ import main
from ledger.errors import BadKey, VerifyError
from ledger.log import read_tile
from ledger.policy import Policy, of_keys
from ledger.tiles import ENTRIES, Tile, unpack

KEY = hashlib.sha256(b"K_s").digest()
ALIAS = "urn:radseal:study:" + hmac.digest(KEY, b"alias/v1", "sha256").hex()
WORDS = "a record"


class Given:
    """A paper site whose story was given away; `members` can be spoilt before `path`."""

    def __init__(self, paper, site, folder: Path, *, disclosed: bool, until: str = "study.closed"):
        self.paper, self.site, self.folder = paper, site, folder
        story = paper.Story(site)
        for type in story.ORDER[: story.ORDER.index(until) + 1]:
            rest = {} if type.startswith("model.") else {"study": ALIAS}
            story.tell(type, **rest)
        self.refs = _all(site)
        self.members: dict[str, bytes] = {
            "README.txt": b"read me\n", "ledger.vkey": b"# a copy\n", "policy": b"# a copy\n",
            "index.json": bundle.index_json(paper.ORIGIN, [(one, WORDS) for one in self.records()]),
        }  # fmt: skip
        if disclosed:
            self.members["disclosed/study.key"] = f"{KEY.hex()}\n".encode()
            text = b'{"resourceType": "Consent"}'
            name = hashlib.sha256(text).hexdigest()
            self.members[f"disclosed/consent/{name}.json"] = text
            self.members["disclosed/requests/00000006.json"] = b"{}"
            self.members["disclosed/instances.json"] = b'{"inputs": []}'
        self.said = site.say(
            "access.disclosed",
            {"recipient": "authority", "purpose": "HLEGAL", "basis": "law", "what": {"records": 1},
             "format": bundle.FORMAT, "root": leaf.ref(self.root(disclosed))},
            subject=paper.SUBJECT, study=ALIAS,
        )  # fmt: skip
        site.publish(1)
        self.refs.append(self.said)
        self.members["checkpoint"] = site.log.checkpoint_text().encode()
        for one in self.records():
            self.members[one.name] = site.log.proof(one.leaf_hash).encode()
        self.seal()

    def records(self) -> list[bundle.Record]:
        found = []
        for ref in self.refs:
            value = leaf.unref(ref)
            index = self.site.log.covered(value)
            found.append(bundle.Record(index, value, leaf.parse(self.site.log.leaf(value))))
        return found

    def digests(self) -> dict[str, bytes]:
        return {
            name: hashlib.sha256(data).digest()
            for name, data in self.members.items()
            if name != "MANIFEST"
        }

    def root(self, disclosed: bool) -> bytes:
        return bundle.objects_root(self.digests(), KEY if disclosed else None)

    def seal(self) -> None:
        """Make MANIFEST agree again, as somebody would who changed a member."""
        self.members["MANIFEST"] = bundle.manifest(self.digests())

    def path(self) -> Path:
        path = self.folder / "bundle.zip"
        with path.open("wb") as file:
            archive.write(file, self.members)
        return path

    def verify(self, policy: Policy | None = None) -> bundle.Report:
        return bundle.verify(self.path(), policy or of_keys(self.paper.VKEYS))

    def refused(self, policy: Policy | None = None) -> str:
        with pytest.raises(VerifyError) as caught:
            self.verify(policy)
        return str(caught.value)


def _all(site) -> list[str]:
    """Publish, then name every leaf in order."""
    site.publish()
    size = site.log.size()
    entries = unpack(read_tile(site.folder, Tile(ENTRIES, 0, size)), size)
    return [leaf.ref(merkle.leaf_hash(entry)) for entry in entries]


@pytest.fixture
def given(paper, site, tmp_path) -> Callable[..., Given]:
    return lambda **options: Given(paper, site, tmp_path, **{"disclosed": True, **options})


def record(given: Given, type: str) -> bundle.Record:
    return next(one for one in given.records() if one.record["type"] == type)


@pytest.mark.parametrize("disclosed", [True, False])
def test_a_bundle_verifies(given, disclosed):
    one = given(disclosed=disclosed)
    report = one.verify()
    assert not report.violations
    assert [r.index for r in report.records] == list(range(len(one.refs)))
    assert report.disclosures == (len(one.refs) - 1,)
    assert report.keys == ({ALIAS: KEY} if disclosed else {})
    assert report.open_studies == ()


def test_a_subset_of_the_log_verifies_with_what_it_stands_on(given):
    one = given(until="consent.checked")
    assert one.verify().open_studies == (record(one, "study.received").index,)


def test_it_needs_keys_that_the_caller_brought(given, paper):
    one = given()
    with pytest.raises(BadKey):
        one.verify(Policy(()))
    others = [note.vkey(signer) for signer in paper.signers(name="another")]
    assert one.refused(of_keys(others)).startswith("checkpoint: ")


def members(given: Given) -> list[str]:
    return sorted(given.members)


def test_every_member_flipped_is_refused_and_named(given):
    one = given()
    for name in members(one):
        whole = one.members[name]
        one.members[name] = bytes([whole[0] ^ 1]) + whole[1:]
        said = one.refused()
        assert said.startswith(f"{name}: ") or name == "MANIFEST", (name, said)
        one.members[name] = whole


def test_every_member_flipped_and_sealed_again_is_refused(given):
    """Who changes MANIFEST along is refused by the leaf of the disclosure, or by the proof."""
    one = given()
    for name in members(one):
        if name == "MANIFEST":
            continue
        whole = one.members[name]
        one.members[name] = bytes([whole[0] ^ 1]) + whole[1:]
        one.seal()
        said = one.refused()
        assert said.split(": ")[0] in (name, "MANIFEST"), (name, said)
        one.members[name] = whole
        one.seal()
    one.verify()


def test_every_member_taken_out_is_refused_and_named(given):
    one = given()
    for name in members(one):
        whole = one.members.pop(name)
        assert one.refused().startswith(f"{name}"), name
        one.seal()
        said = one.refused() if name != "MANIFEST" else "MANIFEST"
        assert said.split(": ")[0] in (name, "MANIFEST", "records", "index.json"), (name, said)
        one.members[name] = whole
        one.seal()
    one.verify()


@pytest.mark.parametrize(
    "name",
    ["verify.py", "records/x.tlog-proof", "disclosed/other.json", "disclosed/consent/x.json",
     "checkpoint.old", "records/1.tlog-proof"],
)  # fmt: skip
def test_a_member_that_does_not_belong_is_refused_and_named(given, name):
    one = given()
    one.members[name] = b"x"
    one.seal()
    assert one.refused() == f"{name}: does not belong into a bundle"


def test_a_member_put_in_is_refused(given):
    one = given()
    one.members["disclosed/requests/00000099.json"] = b"{}"
    assert "not in MANIFEST" in one.refused()
    one.seal()
    assert one.refused().startswith("MANIFEST: is not of what leaf")


def test_swapped_members_are_refused_and_named(given):
    one = given()
    first, second = (r.name for r in one.records()[3:5])
    one.members[first], one.members[second] = one.members[second], one.members[first]
    assert one.refused().startswith(f"{first}: was changed")
    one.seal()
    assert one.refused() == f"{first}: is the proof of leaf 4"


def test_a_record_that_is_not_in_the_log_is_refused(given):
    one = given()
    name = one.records()[2].name
    forged = one.members[name].decode().split("\n")
    data = leaf.parse(one.site.log.leaf(one.records()[2].leaf_hash))
    data["body"]["by"] = "somebody else"
    forged[1] = "extra " + base64.b64encode(leaf.render(data)).decode()
    one.members[name] = "\n".join(forged).encode()
    one.seal()
    assert one.refused().startswith(f"{name}: ")


def test_a_record_of_the_same_log_that_was_put_in_later_is_refused(given):
    one = given(until="consent.checked")
    more = one.site.say("config.changed", {"digest": "0" * 64})
    one.site.publish(2)
    one.refs.append(more)
    for record in one.records():
        one.members[record.name] = one.site.log.proof(record.leaf_hash).encode()
    one.members["checkpoint"] = one.site.log.checkpoint_text().encode()
    one.seal()
    assert "is not in index.json" in one.refused()


def test_a_record_under_another_checkpoint_is_refused(given):
    one = given()
    one.site.fill(1)
    one.site.publish(3)
    name = one.records()[2].name
    one.members[name] = one.site.log.proof(one.records()[2].leaf_hash).encode()
    one.seal()
    assert one.refused() == f"{name}: stands under another checkpoint than the bundle's"


def test_a_proof_without_its_leaf_is_refused(given):
    one = given()
    name = one.records()[2].name
    lines = one.members[name].decode().split("\n")
    one.members[name] = "\n".join([lines[0], *lines[2:]]).encode()
    one.seal()
    assert one.refused() == f"{name}: does not carry its leaf"


def test_another_studys_key_is_refused(given):
    one = given()
    one.members["disclosed/study.key"] = (b"00" * 32) + b"\n"
    one.seal()
    assert one.refused() == "disclosed/study.key: is not the key of the study in these records"
    one.members["disclosed/study.key"] = b"not a key\n"
    one.seal()
    assert one.refused().startswith("disclosed/study.key: holds other things")


def test_without_the_leaf_of_the_disclosure_it_is_refused(given):
    one = given()
    del one.members[record(one, "access.disclosed").name]
    one.seal()
    assert one.refused() == "records: the leaf that says what was disclosed is missing"


def test_a_leaf_whose_foundation_did_not_come_along_is_a_finding(paper, site, tmp_path):
    class Short(Given):
        def records(self):
            return [r for r in super().records() if r.record["type"] != "model.approved"]

    report = Short(paper, site, tmp_path, disclosed=False).verify()
    words = {(v.type, v.rule, v.words) for v in report.violations}
    assert ("model.activated", "R0", "its model.approved is not carried by this bundle") in words


def test_a_broken_rule_is_a_finding_that_names_the_leaf(paper, site, tmp_path):
    class Denied(paper.Story):
        BODIES: Mapping[str, Any] = {
            **paper.Story.BODIES, "consent.checked": paper.permit(decision="deny"),
        }  # fmt: skip

    class Paper:
        Story, ORIGIN, SUBJECT, VKEYS = Denied, paper.ORIGIN, paper.SUBJECT, paper.VKEYS

    report = Given(Paper, site, tmp_path, disclosed=True).verify()
    assert any(v.rule == "R1" and v.type == "inference.started" for v in report.violations)


def test_a_quorum_of_witnesses_that_did_not_sign_is_refused(given, paper):
    witness = note.Ed25519Cosigner.generate("witness.example/w", paper.seed("w"))
    lines = "".join(f"log {key}\n" for key in paper.VKEYS)
    text = f"{lines}witness w {note.vkey(witness)}\nquorum w\n"
    assert "not witnessed" in given().refused(Policy.parse(text))


def test_what_is_disclosed_is_bound_under_the_studys_key():
    """A log holds no digest of a document that somebody could try documents against."""
    digests = {"disclosed/consent/x.json": bytes(32), "README.txt": bytes(32)}
    plain = bundle.objects_root(digests, None)
    assert bundle.objects_root(digests, KEY) == hmac.digest(
        KEY, b"disclosed/v1\0" + plain, "sha256"
    )
    entries = [merkle.leaf_hash(b"object/v1\0" + n.encode() + b"\0" + d)
               for n, d in sorted(digests.items())]  # fmt: skip
    assert plain == merkle.root(entries)
    assert bundle.objects_root({**digests, "records/00000001.tlog-proof": b"x"}, None) == plain


def test_the_root_of_what_is_disclosed_equals_the_vector(vectors):
    want = json.loads((vectors / "commitments" / "commitments.json").read_text())
    digests = dict.fromkeys(want["disclosed"]["objects"], bytes.fromhex(want["digest"]))
    key = bytes.fromhex(want["study_key"])
    assert bundle.objects_root(digests, None).hex() == want["disclosed"]["root"]
    assert bundle.objects_root(digests, key).hex() == want["disclosed"]["root_under_study_key"]
    assert bundle.study_alias(key) == want["study_alias"]


def test_index_json_says_what_each_record_is(given):
    one = given()
    rows = json.loads(one.members["index.json"])["records"]
    assert [row["type"] for row in rows] == [r.record["type"] for r in one.records()[:-1]]
    assert {row["words"] for row in rows} == {WORDS}


def run(*words: object, capsys) -> tuple[int, list[str]]:
    try:
        code = main(["verify", *map(str, words)])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, capsys.readouterr().out.splitlines()


def test_python_m_ledger_verifies_a_bundle(given, paper, tmp_path, capsys):
    one, keys = given(), tmp_path / "keys"
    keys.write_text("".join(f"{key}\n" for key in paper.VKEYS))
    code, lines = run(one.path(), "--vkey", keys, capsys=capsys)
    assert code == 0
    assert lines[-1] == f"OK {paper.ORIGIN}: {len(one.refs)} records of {len(one.refs)} leaves"
    assert bundle.SHOWS_NOT in lines
    one.members["README.txt"] = b"believe the key in here"
    code, lines = run(one.path(), "--vkey", keys, capsys=capsys)
    assert (code, lines[-1]) == (1, "FAIL README.txt: was changed: it is not what MANIFEST says")
    assert run(one.path(), capsys=capsys)[0] == 2


def test_python_m_ledger_prints_findings(paper, site, tmp_path, capsys):
    class Denied(paper.Story):
        BODIES: Mapping[str, Any] = {
            **paper.Story.BODIES, "consent.checked": paper.permit(decision="deny"),
        }  # fmt: skip

    class Paper:
        Story, ORIGIN, SUBJECT, VKEYS = Denied, paper.ORIGIN, paper.SUBJECT, paper.VKEYS

    path = Given(Paper, site, tmp_path, disclosed=True).path()
    words = [word for key in paper.VKEYS for word in ("--vkey", key)]
    code, lines = run(path, *words, capsys=capsys)
    assert code == 1
    assert lines[-1].startswith("FAIL bundle.zip: ")
    assert any(line.startswith("finding: leaf") and "R1" in line for line in lines)
