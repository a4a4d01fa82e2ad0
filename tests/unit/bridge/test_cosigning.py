"""A witness's folder and its commands: made, trusted, asked over HTTP, told apart from a site."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from bridge import quorum
from bridge.api import alone
from bridge.errors import Refused, SettingsError, WrongUse
from bridge.witnessing import cosigning
from ledger import merkle, note, witness
from ledger.checkpoint import Checkpoint
from ledger.policy import Policy

ORIGIN = "log.example/one"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def seed(name):
    return lambda count: (name.encode() * count)[:count]


LOG = [
    note.Ed25519Signer.generate(ORIGIN, seed("a")),
    note.MLDSA44Signer.generate(ORIGIN, seed("b")),
]
VKEYS = [note.vkey(one) for one in LOG]


def request(size=1, old=0, origin=ORIGIN, signers=LOG):
    point = Checkpoint(origin, size, merkle.leaf_hash(b"x"))
    return str(witness.Request(old, (), note.sign_note(str(point), signers, 7))).encode()


@pytest.fixture
def folder(tmp_path):
    cosigning.create(tmp_path / "w", "witness.example/w", seed("w"))
    return tmp_path / "w"


def test_a_folder_is_made_once_and_its_secrets_are_its_own(folder, tmp_path):
    with pytest.raises(WrongUse, match="not empty"):
        cosigning.create(folder, "witness.example/w", seed("w"))
    for name in ("", "a b", "a+b", "a\n", "x" * 256):
        with pytest.raises(WrongUse, match="no space"):
            cosigning.create(tmp_path / "other", name, seed("w"))
    assert not (tmp_path / "other").exists()
    for path in (*(folder / "keys").iterdir(), folder / "witness.db"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ed25519, mldsa44 = map(note.Verifier.from_vkey, cosigning.vkeys(folder))
    assert (ed25519.algorithm, mldsa44.algorithm) == (4, 6)


def test_its_lines_fit_into_a_partners_settings(folder):
    lines = cosigning.policy_lines(folder, "north", "https://n.example/witness")
    (partner,) = quorum.partners(quorum.asked(lines))
    assert (partner.name, len(partner.keys)) == ("north", 2)


def test_whom_it_trusts_can_change_while_it_answers(folder):
    one = cosigning.open_witness(folder)
    assert one.add_checkpoint(request(), 1).status == 404
    assert cosigning.trust(folder, VKEYS) == [ORIGIN]
    assert one.add_checkpoint(request(), 1).status == 200
    text = (folder / "logs").read_text()
    assert cosigning.trust(folder, VKEYS) == [ORIGIN]  # again: no second line
    assert (folder / "logs").read_text() == text
    one.close()


def test_what_is_no_logs_key_is_not_trusted(folder):
    before = (folder / "logs").read_text()
    for keys in (["x"], [VKEYS[0], "x"], cosigning.vkeys(folder)[:1], [VKEYS[0] + "\nlog x"]):
        with pytest.raises(Refused, match="not added"):
            cosigning.trust(folder, keys)
        assert (folder / "logs").read_text() == before


def test_a_witness_that_lost_something_does_not_open(folder, tmp_path):
    with pytest.raises(SettingsError, match="radseal witness init"):
        cosigning.open_witness(tmp_path / "nowhere")
    (folder / "logs").write_text("log x\n")
    with pytest.raises(SettingsError, match="line 1"):
        cosigning.open_witness(folder)
    (folder / "logs").write_text("")
    (folder / "witness.db").rename(tmp_path / "kept.db")
    with pytest.raises(SettingsError, match="make a new witness"):
        cosigning.open_witness(folder)
    (tmp_path / "kept.db").rename(folder / "witness.db")
    other = note.Ed25519Cosigner.generate("witness.example/w", seed("other"))
    kept = (folder / "keys" / "ed25519.pem").read_bytes()
    (folder / "keys" / "ed25519.pem").write_bytes(other.to_pem())
    with pytest.raises(SettingsError, match="not the keys"):
        cosigning.open_witness(folder)
    (folder / "keys" / "ed25519.pem").write_bytes(b"x")
    with pytest.raises(SettingsError, match="PEM"):
        cosigning.open_witness(folder)
    (folder / "keys" / "ed25519.pem").write_bytes(kept)
    cosigning.open_witness(folder).close()


def test_alone_it_answers_over_http_and_has_no_other_door(folder):
    cosigning.trust(folder, VKEYS)
    one = cosigning.open_witness(folder)
    lines = []
    app = alone.create(one, "0", lambda: NOW, lines.append)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/health/live").json() == {"status": "alive"}
        answer = client.post("/witness/add-checkpoint", content=request())
        assert answer.status_code == 200
        keys = [note.Verifier.from_vkey(key) for key in cosigning.vkeys(folder)]
        signed = request().decode().partition("\n\n")[2]
        found = witness.cosignatures(signed, answer.content, keys)
        assert {time for _, _, time in found} == {int(NOW.timestamp())}
        shown = client.get(f"/witness/{witness.address(ORIGIN)}/checkpoint")
        assert Policy.parse(
            "".join(f"log {key}\n" for key in VKEYS) + f"witness w {cosigning.vkeys(folder)[0]}\n"
            "quorum w\n"
        ).judge(shown.text).reached  # fmt: skip
        for path in ("/", "/login", "/studies", "/ledger/checkpoint", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 404
        for headers in ({"Authorization": "Bearer rs_" + "x" * 43},
                        {"Cookie": "radseal_session=rs_" + "x" * 43}):  # fmt: skip
            assert client.get("/health/live", headers=headers).status_code in (200, 401)
        # A damaged file of trust is the operator's to hear of, not the caller's.
        (folder / "logs").write_text("log x\n")
        answer = client.post("/witness/add-checkpoint", content=request())
        assert answer.status_code == 503
        assert str(folder) not in answer.text
    one.close()
    assert {line.route for line in lines} >= {"/witness/add-checkpoint"}


def test_the_commands(radseal, tmp_path):
    folder = tmp_path / "w"
    made = json.loads(
        radseal("witness", "init", folder, "--name", "witness.example/w", "--as", "north",
                "--url", "https://n.example/witness", "--json").out
    )  # fmt: skip
    quorum.asked(made["lines"])
    assert "not empty" in radseal("witness", "init", folder, "--name", "w", code=2).err
    for option, value in (("--url", "ftp://x"), ("--as", "No")):
        other = tmp_path / "other"
        radseal("witness", "init", other, "--name", "w", option, value, code=2)
        assert not other.exists()
    text = radseal("witness", "init", tmp_path / "second", "--name", "w2").out
    assert "witness partner w2+" in text
    assert "radseal witness trust" in text
    assert json.loads(radseal("witness", "list", folder, "--json").out) == []
    assert "no log is trusted" in radseal("witness", "list", folder).out
    keys = tmp_path / "ledger.vkey"
    keys.write_text("".join(f"{key}\n" for key in VKEYS))
    assert f"cosigns {ORIGIN}" in radseal("witness", "trust", folder, keys).out
    assert f"cosigns {ORIGIN}" in radseal("witness", "trust", folder, *VKEYS).out
    radseal("witness", "trust", folder, "x", code=1)
    radseal("witness", "trust", tmp_path / "nowhere", *VKEYS, code=2)
    radseal("witness", "list", tmp_path / "nowhere", code=2)
    one = cosigning.open_witness(folder)
    one.add_checkpoint(request(), int(NOW.timestamp()))
    (row,) = json.loads(radseal("witness", "list", folder, "--json").out)
    assert (row["origin"], row["size"], row["trusted"]) == (ORIGIN, 1, True)
    assert row["cosigned"] == "2026-01-02 00:00:00 UTC"
    other = Checkpoint(ORIGIN, 1, bytes(32))
    forked = witness.Request(1, (), note.sign_note(str(other), LOG, 7))
    assert one.add_checkpoint(str(forked).encode(), 1).status == 422
    one.close()
    assert "TWO HISTORIES" in radseal("witness", "list", folder, code=1).err
    (row,) = json.loads(radseal("witness", "list", folder, "--json", code=1).out)
    assert len(row["split"]) == 2
