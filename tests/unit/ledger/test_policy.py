"""tlog-policy: what is a policy, and what it says of a checkpoint."""

from __future__ import annotations

import forger
import pytest

from ledger.errors import BadKey, MalformedPolicy, SignatureInvalid
from ledger.policy import Policy, of_keys

W = {
    f"{name}{kind}": forger.Key(f"{name}.example", kind, name)
    for name in ("x", "y", "z")
    for kind in (4, 6)
}
LOGS = "".join(f"log {key}\n" for key in forger.VKEYS)
TWO_LEVELS = (
    LOGS
    + f"\n# whom we ask\n\twitness X1  {W['x4'].vkey}\thttps://x.example/w \n"
    + f"witness X2 {W['y6'].vkey}\nwitness Y1 {W['z4'].vkey}\n"
    + "group X 2 X1 X2\ngroup both all X Y1\n  # enough\nquorum both\n"
)


def note(*keys, size=3):
    log = forger.Forger()
    for number in range(size):
        log.say("config.changed", {"digest": f"{number:064x}"})
    return log.note(keys)


def test_a_policy_is_read_and_written():
    policy = Policy.parse(TWO_LEVELS)
    assert [one.name for one in policy.witnesses] == ["X1", "X2", "Y1"]
    assert policy.witnesses[0].url == "https://x.example/w"
    assert [(g.name, g.threshold, g.members) for g in policy.groups] == [
        ("X", 2, ("X1", "X2")), ("both", 2, ("X", "Y1")),
    ]  # fmt: skip
    assert Policy.parse(str(policy)) == policy
    assert str(of_keys(forger.VKEYS)) == LOGS + "quorum none\n"


def test_any_and_all_are_numbers():
    lines = LOGS + "".join(f"witness {n} {W[n].vkey}\n" for n in ("x4", "y4", "z4"))
    for count, threshold in (("any", 1), ("all", 3), ("2", 2)):
        policy = Policy.parse(f"{lines}group g {count} x4 y4 z4\nquorum g\n")
        assert policy.groups[0].threshold == threshold


X, Y = f"witness x {W['x4'].vkey}\n", f"witness y {W['y4'].vkey}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no quorum line"), (LOGS, "no quorum line"), ("quorum none", "does not end"),
        ("quorum none\nquorum none\n", "line 2 of the policy: write one quorum"),
        ("quorum\n", "write one quorum"), ("quorum x\n" + X, "line 1 of the policy: x is neither"),
        ("log\nquorum none\n", "write log"), ("log x\nquorum none\n", "a vkey is"),
        (LOGS + LOGS + "quorum none\n", "line 3 of the policy: this key is listed already"),
        (X + f"witness other {W['x4'].vkey}\nquorum x\n", "line 2 of the policy: this key"),
        (X + X.replace("x", "x", 1) + "quorum x\n", "this key is listed"),
        (X + Y.replace("witness y", "witness x") + "quorum x\n", "the name x is taken"),
        (X.replace("witness x", "witness none") + "quorum none\n", "the name none is taken"),
        (X + "group x any x\nquorum x\n", "the name x is taken"),
        (X + "group g any y\n" + Y + "quorum g\n", "y is neither"),
        (X + "group g any g\nquorum g\n", "g is neither"),
        (X + "group g any x x\nquorum g\n", "a member already"),
        (X + "group g any x\ngroup h any x\nquorum h\n", "a member already"),
        (X + "group g any none\nquorum g\n", "none is neither"),
        (X + "group g any\nquorum g\n", "write group"),
        (X + Y + "group g 3 x y\nquorum g\n", "3 of 2"), (X + "group g 0 x\nquorum g\n", "0 of 1"),
        (X + "group g 01 x\nquorum g\n", "01 of 1"), (X + "group g -1 x\nquorum g\n", "-1 of 1"),
        (X + "group g 1\u0661 x\nquorum g\n", "of 1"), (X + "group g most x\nquorum g\n", "most"),
        (f"witness x {forger.ED.vkey}\nquorum x\n", "type 01 stands where 04 or 06"),
        (f"log {W['x4'].vkey}\nquorum none\n", "type 04 stands where 01 or 06"),
        ("tree x\nquorum none\n", "'tree' is neither"), ("quorum none\r\n", "control characters"),
        ("# \x00\nquorum none\n", "control characters"), ("quorum\x0bnone\n", "control characters"),
        ("#" * 1_000_001 + "\nquorum none\n", "below 1 MB"),
        ("log\u00a0x\nquorum none\n", "is neither"), ("Log x\nquorum none\n", "is neither"),
    ],
)  # fmt: skip
def test_what_is_no_policy(text, words):
    with pytest.raises(MalformedPolicy) as refusal:
        Policy.parse(text)
    assert words in str(refusal.value)


def test_the_number_of_groups_is_bounded():
    lines = [X] + [f"group g{n} any {'x' if not n else f'g{n - 1}'}\n" for n in range(300)]
    with pytest.raises(MalformedPolicy, match="more than 256"):
        Policy.parse("".join(lines) + "quorum g299\n")


def test_comments_and_names_may_hold_any_text():
    policy = Policy.parse(f"# Zürich\nwitness Kélvin {W['x4'].vkey}\nquorum Kélvin\n")
    assert policy.quorum == "Kélvin"
    with pytest.raises(MalformedPolicy):
        Policy.parse(f"witness K {W['x4'].vkey}\nquorum \u212a\n")


def test_who_signed_and_who_cosigned_and_when():
    policy = Policy.parse(TWO_LEVELS)
    grease = forger.Key("grease.example", 4, "grease")
    for keys, reached in (
        ((forger.ED, forger.ML), False),
        ((W["x4"], forger.ML, grease, W["y6"], forger.ED), False),
        ((W["z4"], W["y6"], forger.ED, W["x4"], forger.ML), True),
    ):
        verdict = policy.judge(note(*keys))
        assert verdict.reached is reached
        assert [key.algorithm for key in verdict.signed] == [1, 6]
        assert verdict.missing == ()
        names = {"x.example": "X1", "y.example": "X2", "z.example": "Y1"}
        there = {names[key.name] for key in keys if key.name in names}
        assert set(verdict.cosigned) == there
        assert set(verdict.cosigned.values()) <= {verdict.signed_at}
        unknown = [f"{grease.name}+{grease.key_id.hex()}"] if grease in keys else []
        assert list(verdict.unchecked) == unknown
    assert verdict.checkpoint.size == 3


def test_both_types_of_cosignature_count():
    for key in (W["x4"], W["x6"]):
        policy = Policy.parse(f"{LOGS}witness w {key.vkey}\nquorum w\n")
        assert policy.judge(note(forger.ED, forger.ML, key)).reached
        other = W["x6" if key is W["x4"] else "x4"]
        assert not policy.judge(note(forger.ED, forger.ML, other)).reached


def test_a_listed_key_whose_line_is_wrong_refuses_the_note():
    policy = Policy.parse(TWO_LEVELS)
    good, other = note(forger.ED, forger.ML, W["x4"]), note(forger.ED, forger.ML, W["x4"], size=4)
    body, lines = good.split("\n\n")
    for position in range(3):
        mixed = lines.splitlines()
        mixed[position] = other.split("\n\n")[1].splitlines()[position]
        with pytest.raises(SignatureInvalid, match="does not verify"):
            policy.judge(body + "\n\n" + "\n".join(mixed) + "\n")


def test_of_each_algorithm_listed_one_must_sign():
    with pytest.raises(SignatureInvalid, match="type 06"):
        of_keys(forger.VKEYS).judge(note(forger.ED))
    with pytest.raises(SignatureInvalid, match="type 01"):
        of_keys(forger.VKEYS).judge(note(forger.ML))
    new = [forger.Key(forger.ORIGIN, kind, "new") for kind in (1, 6)]
    both = of_keys([*forger.VKEYS, *(key.vkey for key in new)])
    assert len(both.judge(note(forger.ED, forger.ML)).missing) == 2
    assert both.judge(note(*new, forger.ED, forger.ML)).missing == ()


def test_a_witness_alone_vouches_for_nothing():
    policy = Policy.parse(TWO_LEVELS)
    with pytest.raises(SignatureInvalid, match="no key that you trust"):
        policy.judge(note(W["x4"], W["y6"], W["z4"]))
    with pytest.raises(BadKey, match="at least one vkey"):
        Policy.parse(X + "quorum x\n").judge(note(W["x4"]))


def test_keys_that_cannot_be_told_apart_are_refused(monkeypatch):
    one = forger.Key(forger.ORIGIN, 1, "one")
    with pytest.raises(BadKey, match="witness's key"):
        of_keys([W["x4"].vkey])
    assert len(of_keys([one.vkey, one.vkey]).logs) == 1
    from ledger import note as notes

    monkeypatch.setattr(notes, "_key_id", lambda *_: b"\0\0\0\0")
    twins = [forger.Key(forger.ORIGIN, 1, name) for name in ("a", "b")]
    for twin in twins:
        twin.key_id = b"\0\0\0\0"
    with pytest.raises(BadKey, match="one key id"):
        of_keys([twin.vkey for twin in twins])
    lines = "".join(f"log {twin.vkey}\n" for twin in twins)
    with pytest.raises(MalformedPolicy, match="this key id"):
        Policy.parse(lines + "quorum none\n")
