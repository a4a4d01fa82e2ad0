"""bridge.catalog.lifecycle: who may, what the leaves say, and what is live afterwards."""

from __future__ import annotations

import errno
import shutil
from unittest import mock

import pytest
from bench import MODEL, images, tiny
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bridge import ambient
from bridge.catalog import proof
from bridge.catalog.lifecycle import suspension
from bridge.catalog.standing import alias, why_out
from bridge.errors import NotFound, Refused, WrongUse
from bridge.store import catalog as rows_of
from bridge.store.database import reading
from ledger.statement import statement
from models import sandbox

UID = str(images(1)[0].StudyInstanceUID)
V1, V2, V3 = f"{MODEL}@1.2.3", f"{MODEL}@2.0.0", f"{MODEL}@3.0.0"


def act(desk, what, name=MODEL, by="approver", **more):
    return desk.rooms.lifecycle.act(name, what, ambient.now(), by=by, **more)


def rollback(desk, name=MODEL, **more):
    return desk.rooms.lifecycle.rollback(name, ambient.now(), by="chief", **more)


def row(desk, name=MODEL):
    with reading(desk.rooms.database) as connection:
        return rows_of.find_models(connection, name)[0]


def version(desk, number, above=None):
    """Push and approve one more version."""
    graph = tiny.threshold_graph(above=90.0 + number if above is None else above)
    root = desk.package({"version": f"{number}.0.0"}, name=f"v{number}", model=graph)
    made = desk.push(root)
    return act(desk, "approve", f"{made.id}@{made.version}")


def said(desk, kind):
    return [one for one in desk.leaves() if one["type"] == kind]


def pair(kind):
    key = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else kind()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def p256():
    return ec.generate_private_key(ec.SECP256R1())


def test_one_live_one_shadow_side_by_side_and_back(desk):
    desk.model()
    version(desk, 2)
    act(desk, "shadow", V2, scope={"source": ["CT1"]}, reason="trial")
    assert [alias(row(desk, v)) for v in (V1, V2)] == ["live", "shadow"]
    act(desk, "activate", V2)
    assert (row(desk, V1).state, row(desk, V2).state) == ("approved", "active")
    assert "2.0.0 took its place" in why_out(row(desk, V1), approvals=1)
    out, back = rollback(desk, reason="worse-recall")
    assert (out.version, back.version) == ("2.0.0", "1.2.3")
    assert (row(desk, V1).state, row(desk, V2).state) == ("active", "approved")
    assert "rolled back by chief (worse-recall)" in why_out(row(desk, V2), approvals=1)
    modes = [(one["body"]["version"], one["body"]["mode"]) for one in said(desk, "model.activated")]
    assert modes == [("1.2.3", "active"), ("2.0.0", "shadow"), ("2.0.0", "active"),
                     ("1.2.3", "active")]  # fmt: skip
    (taken,) = said(desk, "model.suspended")
    assert taken["body"]["reason"] == "worse-recall"
    trial = said(desk, "model.activated")[1]
    assert trial["body"]["scope"] == {"source": ["CT1"]}
    assert trial["body"]["reason"] == "trial"
    desk.verify()


def test_rollback_goes_back_step_by_step_with_the_older_scope(desk):
    desk.model()
    act(desk, "shadow", V1)
    act(desk, "activate", V1, scope={"modality": ["CT"]})
    for number in (2, 3):
        version(desk, number)
        act(desk, "activate", f"{MODEL}@{number}.0.0")
    assert rollback(desk)[1].version == "2.0.0"
    assert rollback(desk)[1].version == "1.2.3"
    assert row(desk, V1).scope == {"modality": ["CT"]}
    out, back = rollback(desk)  # nothing was live before it: out it goes all the same
    assert (out.version, back) == ("1.2.3", None)
    with pytest.raises(Refused, match="neither live nor a shadow"):
        rollback(desk)
    desk.verify()


def test_rollback_takes_a_shadow_out_and_leaves_the_live_one(desk):
    desk.model()
    version(desk, 2)
    act(desk, "shadow", V2)
    out, back = rollback(desk, V2)
    assert (out.version, out.state, back) == ("2.0.0", "approved", None)
    assert row(desk, V1).state == "active"


def test_a_retired_version_does_not_come_back(desk):
    desk.model()
    version(desk, 2)
    act(desk, "activate", V2)
    act(desk, "retire", V1)
    out, back = rollback(desk)
    assert (out.version, back) == ("2.0.0", None)


def test_only_one_shadow_of_a_model(desk):
    desk.model()
    for number in (2, 3):
        version(desk, number)
        act(desk, "shadow", f"{MODEL}@{number}.0.0")
    assert [row(desk, v).state for v in (V1, V2, V3)] == ["active", "approved", "shadow"]
    with pytest.raises(Refused, match="possible"):
        act(desk, "shadow", V3)


@pytest.mark.parametrize("what", ["rollback", "suspend", "supersede", "explode", "registered"])
def test_what_no_person_does_so(desk, what):
    desk.model()
    with pytest.raises(WrongUse, match="possible"):
        act(desk, what)


@pytest.mark.parametrize("by", ["", " ", "a\x00b", "x" * 61, "-", "<b>"])
def test_names_that_no_leaf_may_hold(desk, by):
    with pytest.raises(WrongUse, match="--by"):
        act(desk, "approve", by=by)


@pytest.mark.parametrize("reason", ["", "two words", "x" * 101, "-"])
def test_reasons_that_no_leaf_may_hold(desk, reason):
    with pytest.raises(WrongUse, match="--reason"):
        act(desk, "approve", reason=reason)


def test_an_unknown_model_is_not_rolled_back(desk):
    with pytest.raises(NotFound):
        rollback(desk, "nobody")


# k of n.


def test_two_persons_approve_where_two_are_asked_for(new_site):
    desk = new_site("[models]\napprovals = 2\n")
    desk.push(desk.package(), by="vera")
    assert act(desk, "approve", by="anna").state == "registered"
    assert "1 of 2" in why_out(row(desk), approvals=2)
    with pytest.raises(Refused, match="ask another"):
        act(desk, "approve", by=" ANNA ")
    with pytest.raises(Refused, match="cannot approve"):
        act(desk, "approve", by="vera")
    with pytest.raises(Refused, match="possible"):
        act(desk, "activate")
    assert act(desk, "approve", by="bert").state == "approved"
    act(desk, "activate")
    assert [one["body"]["by"] for one in said(desk, "model.approved")] == ["anna", "bert"]
    desk.verify()


def test_a_site_that_asks_for_more_later_asks_again(desk):
    desk.push(desk.package())
    act(desk, "approve", by="anna")
    life = desk.rooms.lifecycle
    life._rules = life._rules.model_copy(update={"approvals": 2})
    with pytest.raises(Refused, match="1 of 2"):
        act(desk, "activate")
    assert act(desk, "approve", by="bert").state == "approved"
    act(desk, "activate")


# Proven.


@pytest.mark.parametrize("kind", ["ed25519", p256], ids=["ed25519", "p256"])
def test_a_stranger_checks_a_signed_act(desk, kind):
    private, public = pair(kind)
    desk.push(desk.package())
    key = desk.rooms.lifecycle.introduce(public, "Anna", ambient.now())
    done = act(desk, "approve", by="anna", key=private)
    assert done.acts[-1]["authn"] == "proven"
    leaf = desk.leaves()[-1]
    body = leaf["body"]
    assert (body["authn"], body["key"]) == ("proven", key)
    line = statement(desk.settings.origin, leaf["type"], leaf["idem"], body)
    assert body["statement"] == line
    assert proof.holds(public, line, body["signature"])
    assert not proof.holds(pair(kind)[1], line, body["signature"])
    assert not proof.holds(public, line + "x", body["signature"])
    assert not proof.holds(public, line, "no base64")
    assert not proof.holds(public, line, "\u00fc")
    desk.verify()


def test_a_key_signs_for_its_person_only(desk):
    private, public = pair("ed25519")
    desk.push(desk.package())
    with pytest.raises(Refused, match="radseal model trust"):
        act(desk, "approve", by="anna", key=private)
    desk.rooms.lifecycle.introduce(public, "bert", ambient.now())
    with pytest.raises(Refused, match="radseal model trust"):
        act(desk, "approve", by="anna", key=private)
    assert row(desk).state == "registered"


def test_a_site_may_want_every_act_signed(new_site):
    desk = new_site("[models]\nproven = true\n")
    private, public = pair("ed25519")
    desk.push(desk.package())
    with pytest.raises(Refused, match="--key"):
        act(desk, "approve", by="anna")
    desk.rooms.lifecycle.introduce(public, "anna", ambient.now())
    act(desk, "approve", by="anna", key=private)
    act(desk, "activate", by="anna", key=private)
    assert row(desk).state == "active"


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_what_is_no_key(desk, pem):
    with pytest.raises(WrongUse, match="private key"):
        act(desk, "approve", key=pem)
    with pytest.raises(WrongUse, match="public key"):
        desk.rooms.lifecycle.introduce(pem, "anna", ambient.now())


@pytest.mark.parametrize(
    "kind",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "rsa"],
)
def test_keys_of_other_kinds_say_what_to_make(kind):
    private, public = pair(kind)
    with pytest.raises(WrongUse, match="Ed25519 or ECDSA P-256"):
        proof.signer(private)
    with pytest.raises(WrongUse, match="Ed25519 or ECDSA P-256"):
        proof.public_key(public)
    with pytest.raises(WrongUse, match="private key"):
        proof.signer(public)


def test_one_key_is_not_two_persons(new_site):
    desk = new_site("[models]\nproven = true\napprovals = 2\n")
    private, public = pair("ed25519")
    desk.push(desk.package())
    introduce = desk.rooms.lifecycle.introduce
    assert introduce(public, "anna", ambient.now()) == introduce(public, " Anna", ambient.now())
    act(desk, "approve", by="anna", key=private)
    with pytest.raises(Refused, match="another person's"):
        introduce(public, "bert", ambient.now())
    with pytest.raises(Refused, match="radseal model trust"):
        act(desk, "approve", by="bert", key=private)


class Killed(Exception):
    """What a kill -9 is to a test."""


@pytest.mark.fault
def test_an_asserted_leaf_that_a_crash_left_stands_for_no_proven_act(desk):
    private, public = pair("ed25519")
    desk.push(desk.package())
    desk.rooms.lifecycle.introduce(public, "anna", ambient.now())
    with mock.patch.object(rows_of, "set_model", side_effect=Killed), pytest.raises(Killed):
        act(desk, "approve", by="anna")
    done = act(desk, "approve", by="anna", key=private).acts[-1]
    (leaf,) = [one["body"] for one in desk.leaves() if one["body"].get("key")
               and one["type"] == "model.approved"]  # fmt: skip
    assert (done["authn"], leaf["authn"]) == ("proven", "proven")
    assert desk.rooms.record.body(done["leaf"]) == leaf
    desk.verify()


@pytest.mark.fault
def test_after_a_crash_the_row_names_whom_the_leaf_of_a_rollback_names(desk):
    desk.model()
    life = desk.rooms.lifecycle
    with mock.patch.object(rows_of, "set_model", side_effect=Killed), pytest.raises(Killed):
        life.rollback(MODEL, ambient.now(), by="anna", reason="worse-recall")
    out, _ = life.rollback(MODEL, ambient.now(), by="bert")
    assert out.acts[-1]["by"] == "anna"
    assert "rolled back by anna (worse-recall)" in why_out(out, approvals=1)
    assert [one["body"]["by"] for one in said(desk, "model.suspended")] == ["anna"]


# What waits for a model that is taken out.


@pytest.fixture
def waiting(desk):
    """A desk whose study waits to be read by version 2, which replaced version 1."""
    desk.model()
    version(desk, 2)
    act(desk, "activate", V2)
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    return desk, route_id


def test_nothing_starts_on_an_activation_that_was_rolled_back(waiting):
    desk, route_id = waiting
    rollback(desk)
    with pytest.raises(Refused, match="rolled back by chief"):
        desk.run(route_id)
    assert not said(desk, "inference.started")
    desk.verify()


def test_a_suspension_that_only_the_log_knows_holds_too(waiting):
    """As a crash between the leaf and the row leaves it."""
    desk, route_id = waiting
    activated = row(desk, V2).leaf_of("activated")
    desk.rooms.record.say(
        "model.suspended", suspension(activated),
        {"model": row(desk, V2).digest, "reason": "rollback"},
        refs=[("model.activated", activated)],
    )  # fmt: skip
    with pytest.raises(Refused, match="taken out of routing"):
        desk.run(route_id)
    desk.verify()


def test_what_a_newer_version_replaced_still_reads_what_was_routed_to_it(waiting):
    desk, route_id = waiting
    version(desk, 3)
    act(desk, "activate", V3)
    assert desk.run(route_id) is not None
    desk.verify()


# Start.


def test_an_unchanged_model_is_not_tested_at_start(desk, monkeypatch):
    desk.model()
    monkeypatch.setattr(sandbox, "selftest", None)  # would raise
    assert desk.rooms.fitness.screen(desk.rooms.lifecycle, ambient.now) == []


def test_a_full_disk_says_nothing_about_a_model(desk, monkeypatch):
    desk.model()
    monkeypatch.setattr("models.machine.cpu_name", lambda: "another processor")

    def full(*_args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(sandbox, "selftest", full)
    assert desk.rooms.fitness.screen(desk.rooms.lifecycle, ambient.now) == []
    assert row(desk).state == "active"


def test_a_changed_runtime_and_a_failed_self_test_take_one_model_out(desk, monkeypatch):
    desk.model()
    change = {"deployment": {"identity": {"id": "test.other"}}}
    other = desk.model(change, name="other", model=tiny.threshold_graph(above=95.0))
    monkeypatch.setattr("models.machine.cpu_name", lambda: "another processor")
    asked = []

    def verdict(package, _limits):
        asked.append(package.id)
        return sandbox.SelfTest(package.id != MODEL, "mask differs by up to 1")

    monkeypatch.setattr(sandbox, "selftest", verdict)
    assert desk.rooms.fitness.screen(desk.rooms.lifecycle, ambient.now) == [MODEL]
    assert sorted(asked) == ["test.other", MODEL]
    assert [one.digest for one, _ in desk.rooms.catalog.active()] == [other.digest]
    assert "mask differs" in why_out(row(desk), approvals=1)
    (leaf,) = said(desk, "model.suspended")
    assert leaf["body"]["reason"] == "selftest-failed"
    assert "by" not in leaf["body"]
    assert desk.rooms.fitness.screen(desk.rooms.lifecycle, ambient.now) == []
    assert len(asked) == 2  # the one that passed is remembered
    with pytest.raises(Refused, match="self-test has not passed"):
        act(desk, "activate")
    monkeypatch.setattr(sandbox, "selftest", lambda *_: sandbox.SelfTest(True, "passed"))
    desk.rooms.fitness.test(row(desk), ambient.now())
    assert act(desk, "activate").state == "active"
    desk.verify()


def test_what_was_not_tested_on_this_runtime_does_not_go_live_nor_come_back(desk, monkeypatch):
    """Approved, then the machine changed: start-up tests only what is in routing."""
    desk.model()
    version(desk, 2)
    act(desk, "activate", V2)
    version(desk, 3)
    monkeypatch.setattr("models.machine.cpu_name", lambda: "another processor")
    with pytest.raises(Refused, match="self-test has not passed"):
        act(desk, "activate", V3)
    out, back = rollback(desk)
    assert (out.version, back) == ("2.0.0", None)  # what is bad goes out in any case
    monkeypatch.setattr(sandbox, "selftest", lambda *_: sandbox.SelfTest(True, "passed"))
    desk.rooms.fitness.test(row(desk, V1), ambient.now())
    assert act(desk, "activate", V1).state == "active"


def test_a_version_whose_files_are_gone_does_not_come_back(desk):
    first = desk.model()
    version(desk, 2)
    act(desk, "activate", V2)
    shutil.rmtree(desk.settings.folder / first.folder)
    desk.rooms.catalog._open.clear()
    assert rollback(desk)[1] is None


def test_the_command_tests_what_was_not_tested_here(desk, radseal, monkeypatch):
    desk.push(desk.package())
    act(desk, "approve")
    monkeypatch.setattr("models.machine.cpu_name", lambda: "another processor")
    desk.close()
    told = radseal("model", "activate", MODEL, "--by", "chief")
    desk.reopen(desk.settings.folder)
    assert "self-test: " in told.err
    assert row(desk).state == "active"
