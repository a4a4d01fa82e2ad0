"""bridge.cli: what people type and find (design §6): words, JSON, exit codes 0, 1 and 2."""

from __future__ import annotations

import json

import pytest
from bench import ANNA, BERT, MODEL, changed, consent, images, write_package

from bridge.home import create

UID = str(images(1)[0].StudyInstanceUID)


@pytest.fixture
def empty(tmp_path):
    return create(tmp_path / "site", "Test", "test.example.org/log").folder


def test_every_command_of_the_contract_has_help(radseal):
    for words in (
        (), ("init",), ("serve",), ("worker",), ("doctor",), ("status",), ("studies",), ("why",),
        ("retry",), ("cancel",), ("complete",), ("model",), ("model", "trust"),
        ("model", "untrust"), ("model", "new"), ("model", "import"),
        ("model", "check"), ("model", "sign"), ("model", "push"), ("model", "approve"),
        ("model", "activate"), ("model", "shadow"), ("model", "rollback"), ("model", "retire"),
        ("model", "list"), ("runs",), ("consent",),
        ("consent", "add"), ("consent", "list"), ("consent", "withdraw"), ("consent", "check"),
        ("peer", "echo"), ("send",), ("rerun",), ("token", "add"), ("quarantine", "list"),
        ("quarantine", "accept"), ("quarantine", "discard"), ("receipt",), ("verify",), ("demo",),
    ):  # fmt: skip
        assert "Usage" in radseal(*words, "--help").out


def test_what_is_no_command_is_wrong_use(radseal):
    radseal("fly", code=2)
    radseal("studies", "--state", "happy", code=2)


def test_init_makes_a_site(radseal, tmp_path):
    said = radseal("init", tmp_path / "new", "--name", "X", "--origin", "x.example/log", "--json")
    assert said.json()["origin"] == "x.example/log"
    assert (tmp_path / "new/site.toml").exists()
    again = radseal("init", tmp_path / "new", code=2)
    assert "not empty" in again.err
    assert again.err.count("\n") == 1
    wrong = radseal("init", tmp_path / "other", "--origin", "https://x", code=2)
    assert "without a scheme" in wrong.err


@pytest.mark.parametrize(
    "words", [("status",), ("studies",), ("why", "1.2"), ("model", "list"), ("doctor",)]
)
def test_without_a_site_every_command_says_how_to_make_one(radseal, words):
    assert "radseal init" in radseal(*words, code=2).err


@pytest.mark.parametrize("command", ["studies", "runs", "consent list", "quarantine list"])
@pytest.mark.usefixtures("empty")
def test_lists_of_an_empty_site(radseal, command):
    assert radseal(*command.split(), "--json").json() == []
    assert radseal(*command.split()).out.strip()


@pytest.mark.usefixtures("empty")
def test_status(radseal):
    found = radseal("status", "--json").json()
    assert found["studies"] == {}
    assert found["inbox"] == 0
    assert "leaves published" in radseal("status").out


def test_a_site_by_option(radseal, empty, monkeypatch, tmp_path):
    monkeypatch.setenv("RADSEAL_SITE", str(tmp_path / "nowhere"))
    assert radseal("studies", "--site", empty, "--json").json() == []
    radseal("studies", code=2)


@pytest.mark.parametrize("command", ["why", "retry", "cancel", "complete"])
@pytest.mark.usefixtures("empty")
def test_an_unknown_study_is_exit_1(radseal, command):
    assert "no such study" in radseal(command, "1.2.3", code=1).err


# A site with a study.


@pytest.fixture
def lived(desk):
    desk.model({"deployment": {"results": {"secondary_capture": False}}})
    desk.receive(*images(3), changed(images(4)[3], PatientID=BERT.id))
    desk.walk(UID)
    desk.leaves()
    return desk


@pytest.mark.usefixtures("lived")
def test_studies_and_why(radseal):
    (line,) = radseal("studies", "--json").json()
    assert line["study_instance_uid"] == UID
    assert line["state"] == "attention"
    assert UID in radseal("studies").out
    assert radseal("studies", "--state", "failed", "--json").json() == []
    told = radseal("why", UID, "--json").json()
    assert [r["state"] for r in told["routes"]] == ["reported"]
    assert all(x["index"] is not None for x in told["lines"] if x["leaf"])
    text = radseal("why", UID).out
    assert "in quarantine: 1 images" in text
    assert "Volume" in text
    (run,) = radseal("runs", "--json").json()
    assert run["state"] == "completed"
    assert radseal("rerun", run["id"], "--compare").out.startswith("equal (compared: findings and")
    told = radseal("rerun", run["id"], "--compare", "--json").json()
    assert (told["outcome"], told["basis"], told["differs"]) == ("equal", "commitment", [])
    assert told["then"]["cpu"] == told["now"]["cpu"]
    assert "not possible: no such run" in radseal("rerun", "0" * 32, "--compare", code=2).err
    told = radseal("rerun", "0" * 32, "--json", code=2).json()
    assert told["outcome"] == "not possible"


@pytest.mark.usefixtures("lived")
def test_quarantine_is_resolved_by_a_person(radseal):
    (row,) = radseal("quarantine", "list", "--json").json()
    assert row["study"] == UID
    radseal("quarantine", "discard", UID, code=2)  # by whom?
    assert "1 images discarded" in radseal("quarantine", "discard", UID, "--by", "dr-x").out
    assert radseal("quarantine", "list", "--json").json() == []
    radseal("quarantine", "accept", UID, "--by", "dr-x", code=1)


def test_receipt_and_verify(radseal, lived, tmp_path):
    uid = lived.rows("artifacts")[0].sop_instance_uid
    proof, vkey = tmp_path / "x.tlog-proof", lived.settings.folder / "ledger.vkey"
    radseal("receipt", uid, "-o", proof)
    found = radseal("verify", proof, "--vkey", vkey, "--json").json()
    assert found["verified"] is True
    assert found["leaf"]["type"] == "result.composed"
    radseal("verify", proof, "--policy", lived.settings.folder / "ledger.policy")
    log = lived.settings.folder / "ledger"
    assert (
        "its operator could have shown others another history"
        in radseal("verify", log, "--vkey", vkey).out
    )
    radseal("verify", proof, code=2)  # a verifier takes no trust from what it verifies
    radseal("verify", tmp_path / "nothing", "--vkey", vkey, code=1)
    proof.write_text(proof.read_text().replace("a", "b", 3))
    assert "NOT verified" in radseal("verify", proof, "--vkey", vkey, code=1).err
    radseal("receipt", "1.2.3", "-o", proof, code=1)


@pytest.mark.parametrize("key", ["rubbish", "a+b+c", ""])
def test_a_vkey_that_is_none_is_wrong_use_or_a_refusal(radseal, lived, key):
    said = radseal("verify", lived.settings.folder / "ledger", "--vkey", key, code=2)
    assert said.err.startswith("radseal: ")


# Models.


@pytest.mark.usefixtures("empty")
def test_a_models_way_in(radseal, tmp_path, desk_vendor):
    root = write_package(tmp_path / "pkg")
    key, public = desk_vendor
    radseal("model", "push", root, code=1)
    radseal("model", "sign", root, "--key", key)
    checked = radseal("model", "check", root, "--key", public)
    assert "self-test: passed" in checked.out
    assert "trust" in radseal("model", "trust", public, "--vendor", "test").out
    radseal("model", "push", root)
    listed = radseal("model", "list", "--json").json()
    registrant = next(m for m in listed if m["id"] == MODEL)["acts"][0]["by"]
    radseal("model", "approve", MODEL, "--by", registrant, code=1)
    radseal("model", "activate", MODEL, "--by", "otto", code=1)
    radseal("model", "approve", f"{MODEL}@1.2.3", "--by", "otto")
    assert "asserted" in radseal("model", "activate", MODEL, "--by", "otto").out
    limits = ("--scope", "source=CT1,CT2", "--scope", "modality=ct", "--reason", "trial")
    shadowed = radseal("model", "shadow", MODEL, "--by", "otto", *limits).out
    assert "made a shadow by otto (asserted); for modality CT; source CT1 or CT2" in shadowed
    (mine,) = [m for m in radseal("model", "list", "--json").json() if m["id"] == MODEL]
    assert (mine["alias"], mine["why"]) == ("shadow", "")
    assert mine["scope"] == {"source": ["CT1", "CT2"], "modality": ["CT"]}
    assert f"model {MODEL} 1.2.3: shadow" in radseal("status").out
    radseal("model", "shadow", MODEL, "--by", "otto", "--scope", "ward=3", code=2)
    assert "taken out" in radseal("model", "rollback", MODEL, "--by", "otto").out
    assert "rolled back by otto" in radseal("model", "list").out
    radseal("model", "rollback", MODEL, "--by", "otto", code=1)
    radseal("model", "approve", MODEL, "--by", "anna", "--key", key, code=1)
    radseal("model", "trust", public, code=2)
    radseal("model", "trust", public, "--person", "anna")
    assert "(proven)" in radseal("model", "activate", MODEL, "--by", "anna", "--key", key).out
    radseal("model", "retire", MODEL, "--by", "otto")
    radseal("model", "approve", "nobody", "--by", "otto", code=1)


@pytest.fixture
def desk_vendor(tmp_path):
    from bench import Vendor

    vendor = Vendor()
    (tmp_path / "key.pem").write_bytes(vendor.private)
    (tmp_path / "pub.pem").write_bytes(vendor.public)
    return tmp_path / "key.pem", tmp_path / "pub.pem"


@pytest.mark.usefixtures("empty")
def test_wrong_files_for_models_are_sentences(radseal, tmp_path, desk_vendor):
    key, _ = desk_vendor
    for words in (
        ("model", "check", tmp_path / "none"),
        ("model", "push", tmp_path / "none"),
        ("model", "sign", tmp_path / "none", "--key", key),
        ("model", "trust", tmp_path / "none", "--vendor", "v"),
        ("model", "sign", write_package(tmp_path / "pkg"), "--key", tmp_path / "pub.pem"),
    ):
        assert radseal(*words, code=1).err.startswith("radseal: ")
    radseal("model", "trust", key, "--vendor", "v", code=2)


# Consent.


@pytest.mark.usefixtures("desk")
def test_consent_is_added_listed_withdrawn_and_never_names_anybody(radseal, tmp_path):
    path = tmp_path / "consent.json"
    path.write_bytes(consent("deny"))
    said = radseal("consent", "add", path)
    (row,) = radseal("consent", "list", "--json").json()
    assert row["id"] in said.out
    radseal("consent", "withdraw", row["id"])
    radseal("consent", "withdraw", row["id"], code=1)
    radseal("consent", "withdraw", "nobody", code=1)
    listed = radseal("consent", "list").out
    for canary in (ANNA.id, "Alpha"):
        assert canary not in said.out + listed


def test_a_patient_is_named_on_standard_input_only(radseal, desk, tmp_path):
    path = tmp_path / "consent.json"
    document = json.loads(consent("deny"))
    document["patient"] = {"reference": "Patient/1"}
    path.write_text(json.dumps(document))
    assert "--patient -" in radseal("consent", "add", path, code=1).err
    assert "standard input" in radseal("consent", "add", path, "--patient", "-", code=2).err
    radseal("consent", "add", path, "--patient", "GH|A-1", code=2)
    radseal("consent", "add", path, "--patient", "-", said="GH|A-1\n")
    subject = desk.rooms.vault.subject("GH", "A-1").ref
    assert desk.rows("consents")[0].subject_ref == subject


@pytest.mark.parametrize("text", ["", "{", "[]", '{"resourceType": "Patient"}', "\xff"])
@pytest.mark.usefixtures("empty")
def test_what_is_no_consent_is_a_sentence(radseal, tmp_path, text):
    path = tmp_path / "consent.json"
    path.write_text(text, encoding="latin-1")
    assert radseal("consent", "add", path, code=1).err.startswith("radseal: ")
    radseal("consent", "add", tmp_path / "none.json", code=1)


def test_consent_check_decides_offline(radseal, tmp_path, monkeypatch):
    monkeypatch.delenv("RADSEAL_SITE")
    request, document = tmp_path / "request.json", tmp_path / "consent.json"
    act = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
    request.write_text(json.dumps({
        "purpose": {"system": act, "code": "TREATDS"}, "actors": [], "at": "2026-03-01T12:00:00Z",
    }))  # fmt: skip
    document.write_bytes(consent("deny"))
    found = radseal("consent", "check", "--request", request, document, "--json")
    assert found.json()["decision"] == "deny"
    radseal("consent", "check", "--request", request, document, "--policy", "opt-in-all")
    radseal("consent", "check", "--request", request, document, "--policy", "none", code=2)
    radseal("consent", "check", "--request", tmp_path / "none", document, code=2)
    request.write_text("{}")
    radseal("consent", "check", "--request", request, document, code=2)


# The site.


def test_a_token_is_shown_once(radseal, desk):
    token = radseal("token", "add", "viewer", "--role", "operator").out.strip()
    assert token.startswith("rs_")
    stored = (desk.settings.folder / "state.db").read_bytes()
    stored += (desk.settings.folder / "state.db-wal").read_bytes()
    assert token.encode() not in stored
    radseal("token", "add", "viewer", "--role", "king", code=2)


@pytest.mark.usefixtures("empty")
def test_a_login_link(radseal):
    assert "/login/" in radseal("login", "--role", "radiologist").out


def test_peer_echo(radseal, new_site, archive):
    pacs = archive()
    new_site(pacs.toml())
    assert "answers" in radseal("peer", "echo", "pacs").out
    pacs.close()
    assert "does not answer" in radseal("peer", "echo", "pacs", code=1).out
    assert "no source or destination" in radseal("peer", "echo", "nobody", code=1).err


def test_doctor_names_what_is_wrong(radseal, desk):
    checks = {c["check"]: c for c in radseal("doctor", "--json", code=1).json()}
    assert checks["keys"]["ok"]
    assert not checks["models"]["ok"]
    assert "radseal model approve" in checks["models"]["words"]
    assert not checks["sources"]["ok"]
    (desk.settings.folder / "keys/site.key").chmod(0o644)
    assert "chmod 600 keys/site.key" in radseal("doctor", code=1).out


def test_doctor_says_which_package_is_broken(radseal, desk):
    row = desk.model()
    (desk.settings.folder / row.folder / "models/model.onnx").write_bytes(b"x")
    assert f"FAIL model {MODEL}" in radseal("doctor", code=1).out


@pytest.mark.usefixtures("desk")
def test_send(radseal, tmp_path):
    (tmp_path / "images").mkdir()
    radseal("send", tmp_path / "images", code=1)
    images(1)[0].save_as(tmp_path / "images/a.dcm", enforce_file_format=True)
    (tmp_path / "images/README").write_text("not an image")
    said = radseal("send", tmp_path / "images", code=1)  # nobody listens
    assert "0 of 2 files stored" in said.out
    assert "does not answer" in said.err
    assert "no DICOM file" in said.err


@pytest.mark.usefixtures("empty")
def test_a_second_worker_needs_postgresql(radseal):
    assert "postgresql" in radseal("worker", code=1).err
