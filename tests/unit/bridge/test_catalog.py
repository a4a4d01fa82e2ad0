"""bridge.catalog: who may bring a model, who may use it; rows, files and leaves agree."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from bench import MODEL, Vendor, tiny, write_package
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bridge import ambient
from bridge.errors import NotFound, Refused, WrongUse
from bridge.store import catalog as rows_of
from bridge.store.database import reading


def types(desk) -> list[str]:
    return [leaf["type"] for leaf in desk.leaves()]


def act(desk, what: str, by: str = "approver", name: str = MODEL):
    return desk.rooms.lifecycle.act(name, what, ambient.now(), by=by)


def state(desk, name: str = MODEL) -> str:
    with reading(desk.rooms.database) as connection:
        return rows_of.find_models(connection, name)[0].state


def other_graph(above: float = 90.0):
    return tiny.threshold_graph(above=above)


def test_a_package_is_registered_with_its_files_and_its_leaf(desk):
    root = desk.package()
    row = desk.push(root)
    assert row.state == "registered"
    assert (desk.settings.folder / row.folder / "configs/metadata.json").exists()
    assert not list(desk.settings.folder.rglob("*.part"))
    leaf = desk.leaves()[-1]
    assert leaf["type"] == "model.registered"
    assert leaf["body"]["model"] == row.digest
    assert leaf["body"]["key"]
    shutil.rmtree(root)  # what was registered stands by itself
    desk.rooms.catalog._open.clear()
    assert desk.rooms.catalog.package(row.digest).id == MODEL


def test_pushing_the_same_again_changes_nothing(desk):
    root = desk.package()
    first, second = desk.push(root), desk.push(root)
    assert first.digest == second.digest
    assert len(desk.rows("models")) == 1
    assert types(desk).count("model.registered") == 1


def test_the_real_admission_and_self_test_run_in_a_child(desk):
    said = []
    row = desk.rooms.registrar.push(
        desk.package(), ambient.now(), by="vendor", progress=said.append
    )
    assert said == ["signature", "structure", "self-test"]
    assert row.id == MODEL


def test_a_self_test_that_fails_is_refused(desk):
    root = write_package(desk.base / "pkg", model=other_graph(10.0))
    # Its recorded outputs are those of another threshold: 50 lies between.
    desk.vendor.sign(root)
    desk.rooms.registrar.trust(desk.vendor.public, "test", ambient.now())
    with pytest.raises(Refused, match="self-test failed"):
        desk.rooms.registrar.push(root, ambient.now(), by="v", progress=lambda _what: None)
    assert not desk.rows("models")
    assert "model.registered" not in types(desk)


def test_a_stranger_is_refused(desk):
    root = desk.package()
    Vendor().sign(root)
    with pytest.raises(Refused):
        desk.push(root)


def test_a_package_changed_after_it_was_signed_is_refused(desk):
    root = desk.package()
    (root / "docs/more.md").write_text("x")
    with pytest.raises(Refused):
        desk.push(root)
    assert not desk.rows("models")


def test_a_key_trusted_for_one_vendor_signs_for_no_other(desk):
    root = desk.package()
    other = write_package(
        desk.base / "other",
        {"deployment": {"identity": {"id": "other.model", "vendor": "other"}}},
        other_graph(),
    )
    desk.vendor.sign(other)
    with pytest.raises(Refused):
        desk.push(other)
    desk.push(root)


def test_an_id_belongs_to_the_first_vendor_that_registered_it(desk):
    desk.push(desk.package())
    change = {"version": "2.0.0", "deployment": {"identity": {"vendor": "other"}}}
    root = desk.package(change, name="other", model=other_graph())
    with pytest.raises(Refused, match="belongs to another vendor"):
        desk.push(root)
    assert len(desk.rows("models")) == 1
    assert types(desk).count("model.registered") == 1


def test_a_version_with_other_files_is_refused(desk):
    desk.push(desk.package())
    root = desk.package(name="other", model=other_graph())
    with pytest.raises(Refused, match="raise the version"):
        desk.push(root)
    assert types(desk).count("model.registered") == 1


def test_the_same_graph_under_another_version_is_refused_in_words(desk):
    """A model is its digest: its leaves could not say which of two packages they mean."""
    desk.push(desk.package())
    root = desk.package({"version": "1.2.4"}, name="other")
    with pytest.raises(Refused, match=f"{MODEL}@1.2.3"):
        desk.push(root)
    assert types(desk).count("model.registered") == 1


def test_a_broken_package_is_refused_with_file_key_and_fix(desk):
    root = write_package(desk.base / "pkg", {"deployment": {"layout": "sideways"}})
    desk.vendor.sign(root)
    with pytest.raises(Refused) as refused:
        desk.push(root)
    assert "metadata.json" in str(refused.value)
    assert "layout" in str(refused.value)


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n"])
def test_what_is_no_public_key_is_not_trusted(desk, pem):
    with pytest.raises(WrongUse, match="public key"):
        desk.rooms.registrar.trust(pem, "v", ambient.now())


def test_a_private_key_is_not_taken_for_a_public_one(desk):
    with pytest.raises(WrongUse):
        desk.rooms.registrar.trust(desk.vendor.private, "v", ambient.now())


def test_trusting_again_is_harmless(desk):
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    first = desk.rooms.registrar.trust(pem, "v", ambient.now())
    assert desk.rooms.registrar.trust(pem + b"\n", "v", ambient.now()) == first
    assert len(desk.rows("vendors")) == 1


@pytest.mark.parametrize(
    ("days", "words"),
    [((-9, -2), "no longer trusted"), ((2, 9), "not trusted yet"), ((2, None), "not trusted yet")],
)
def test_a_key_outside_its_dates_is_refused_with_key_and_dates(desk, days, words):
    root, now = desk.package(), ambient.now()
    since, until = (None if d is None else now + timedelta(days=d) for d in days)
    key = desk.rooms.registrar.trust(desk.vendor.public, "test", now, since=since, until=until)
    with pytest.raises(Refused, match=words) as refused:
        desk.push(root)
    assert key.key_sha256[:16] in str(refused.value)
    assert f"from {since:%Y-%m-%d}" in str(refused.value)
    assert until is None or f"until {until:%Y-%m-%d}" in str(refused.value)
    assert not desk.rows("models")
    desk.rooms.registrar.trust(desk.vendor.public, "test", now, since=now - timedelta(days=9))
    assert desk.push(root).state == "registered"


def test_a_key_that_is_untrusted_signs_nothing_more_and_what_it_signed_stays(desk):
    root = desk.package()
    row = desk.push(root)
    (key,) = desk.rows("vendors")
    for said in ("0" * 16, key.key_sha256[:4], ""):
        with pytest.raises(NotFound, match="digits"):
            desk.rooms.registrar.untrust(said, ambient.now())
    desk.rooms.registrar.untrust(key.key_sha256[:8], ambient.now())
    with pytest.raises(Refused, match="no longer trusted"):
        desk.push(root)
    assert desk.rooms.catalog.package(row.digest)
    desk.rooms.registrar.trust(desk.vendor.public, "test", ambient.now())
    assert desk.push(root).digest == row.digest


def test_dates_in_which_a_key_is_never_trusted_are_wrong_use(desk):
    now = ambient.now()
    with pytest.raises(WrongUse, match="later date"):
        desk.rooms.registrar.trust(desk.vendor.public, "v", now, until=now)


def test_trust_and_untrust_as_they_are_typed(desk, radseal, tmp_path):
    root = desk.package()
    pem = tmp_path / "vendor.pub.pem"
    pem.write_bytes(desk.vendor.public)
    words = ("model", "trust", pem, "--vendor", "test")
    told = radseal(*words, "--from", "2020-01-01", "--until", "2020-12-31").out
    assert "from 2020-01-01 00:00 until 2021-01-01 00:00 UTC" in told
    assert "no longer trusted" in radseal("model", "push", root, code=1).err
    assert "2027-01-31" in radseal(*words, "--from", "soon", code=2).err
    digits = radseal(*words).out.split("key ")[1].split()[0]
    assert "no longer trusted" in radseal("model", "untrust", digits).out
    assert "digits" in radseal("model", "untrust", "ffffffffffff", code=1).err


# Acts.


def test_the_registrant_does_not_approve(desk):
    desk.push(desk.package(), by="vera")
    with pytest.raises(Refused, match="ask a second one"):
        act(desk, "approve", by="vera")
    assert state(desk) == "registered"
    act(desk, "approve", by="otto")
    assert state(desk) == "approved"


@pytest.mark.parametrize("by", ["Vera", "vera ", " VERA", "\N{FULLWIDTH LATIN SMALL LETTER V}era"])
def test_no_other_spelling_makes_the_registrant_two_persons(desk, by):
    desk.push(desk.package(), by="vera")
    with pytest.raises(Refused, match="ask a second one"):
        act(desk, "approve", by=by)


@pytest.mark.parametrize("what", ["activate", "approve"])
def test_what_the_state_does_not_allow_is_refused(desk, what):
    desk.push(desk.package())
    if what == "approve":
        act(desk, "approve")
    with pytest.raises(Refused, match="possible"):
        act(desk, what)


def test_each_act_is_a_leaf_that_stands_on_the_former(desk):
    desk.push(desk.package())
    for what in ("approve", "activate", "retire"):
        act(desk, what)
    assert types(desk)[1:] == [
        "model.registered", "model.approved", "model.activated", "model.retired",
    ]  # fmt: skip
    assert state(desk) == "retired"
    desk.verify()


def test_an_unknown_model(desk):
    with pytest.raises(NotFound, match="model list"):
        act(desk, "approve", name="nobody")
    with pytest.raises(NotFound):
        desk.rooms.catalog.package("0" * 64)


def test_a_new_version_takes_over(desk):
    desk.model()
    new = desk.model({"version": "2.0.0"}, name="new", model=other_graph())
    assert [row.digest for row, _ in desk.rooms.catalog.active()] == [new.digest]
    assert state(desk, f"{MODEL}@1.2.3") == "approved"
    with reading(desk.rooms.database) as connection:
        assert rows_of.find_models(connection, MODEL)[0].version == "2.0.0"
        assert len(rows_of.find_models(connection, MODEL)) == 2
        assert len(rows_of.find_models(connection, new.digest)) == 1


def test_active_models_whose_files_changed_are_broken_not_fatal(desk):
    row = desk.model()
    desk.rooms.catalog._open.clear()
    (Path(desk.settings.folder) / row.folder / "models/model.onnx").write_bytes(b"x")
    assert desk.rooms.catalog.active() == []
    ((found, why),) = desk.rooms.catalog.broken()
    assert found.digest == row.digest
    assert why
