"""The verifier judged by logs that none of its code wrote (tests/forger.py): R0 to R9."""

from __future__ import annotations

import ast
import json
import sys
from datetime import timedelta
from pathlib import Path

import forger
import pytest

from ledger import trace_memory, verify
from ledger.__main__ import main
from ledger.errors import VerifyError
from ledger.policy import Policy
from ledger.trace import Terms

TERMS = Terms(sla_seconds=600)


def opened():
    log = forger.Forger().open()
    log.study("before")
    return log


def rich():
    """A lawful log with everything that a rule looks at."""
    log = opened()
    whose = log.received("consents")
    granted = log.grant(whose)
    body = {"document": forger.value("2"), "status": "active", "source": "fhir"}
    amended = log.say("consent.amended", body, [("previous", granted)], subject=whose["subject"])
    used = [("consent.amended", amended), ("consent.granted", granted)]
    log.check(whose, used, basis="consent", valid_until="2026-03-02T00:00:00.000Z")
    log.run(whose)
    log.deliver(whose)
    on = log.on("result.delivered")
    log.say(
        "result.superseded", {"destination": "pacs", "kind": "sr", "reason": "newer"}, on, **whose
    )
    log.say("consent.withdrawn", {"document": forger.value("2")}, used, subject=whose["subject"])
    log.check(whose, decision="deny")
    log.close(whose)
    whose = log.received("glass")
    override = {"reason": "emergency", "by": "u7"}
    log.check(whose, basis="override", override=override, reason="btg")
    log.say("override.reviewed", {"outcome": "justified", "by": "u9"},
            log.on("consent.checked"), subject=whose["subject"])  # fmt: skip
    log.run(whose)
    log.close(whose)
    log.say("config.changed", {"digest": "2" * 64, "previous": "1" * 64})
    log.say("subject.erased", {"basis": "Art. 17"}, subject=whose["subject"])
    log.check(whose, decision="deny", reason="erased")
    log.study("after")
    two_inputs(log)
    denied_elsewhere(log)
    by_two_persons(log)
    return log


def two_inputs(log):
    """A run reads two inputs that were permitted together."""
    whose = log.received("two")
    first = log.last["input.sealed"]
    body = json.loads(log.leaves[-1])["body"]
    log.say("input.sealed", {**body, "generation": 2}, log.on("study.received"), **whose)
    log.check(whose, [("input.sealed", first)])
    on = [("input.sealed", first), *log.on("input.sealed", "consent.checked", "model.activated")]
    log.say("inference.started", {"model": log.model, "run": "r2"}, on, **whose)
    log.say("inference.failed", {"model": log.model, "reason": "crash"},
            log.on("inference.started"), **whose)  # fmt: skip
    log.close(whose)


def denied_elsewhere(log):
    """Denials that are about something else: another study, purpose or place, or a release."""
    whose = log.received("denied")
    log.check(whose)
    permit = log.last["consent.checked"]
    log.deny({**whose, "study": "urn:radseal:study:" + "8" * 64})
    log.deny(whose, purpose="HRESCH")
    log.deny(whose, destination="elsewhere")
    log.deny(whose, stage="release")
    log.last["consent.checked"] = permit
    log.run(whose)
    log.deliver(whose)
    log.deny({"subject": whose["subject"]})
    log.close(whose)


def by_two_persons(log):
    """A model that two persons put to use; who approved it registers it once it is active."""
    log.model = "c" * 64
    log.admit("vendor", "eve")
    named = {"model": log.model, "id": "chest", "version": "1", "vendor": "v", "by": "eve"}
    log.say("model.registered", named)
    log.study("of the new model")


def test_the_forger_shares_no_code_with_the_verifier():
    imported = set()
    for node in ast.walk(ast.parse(Path(forger.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {one.name.split(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def test_a_lawful_log_has_no_finding(tmp_path):
    log = rich()
    for number in range(60):
        log.study(str(number))
    report = verify.audit(log.write(tmp_path), forger.VKEYS, TERMS)
    assert (report.violations, report.broken, report.notes) == ((), 0, ())
    assert report.size == len(log.leaves) > 512


@pytest.mark.parametrize("name", forger.BREAKS)
def test_each_broken_rule_is_found_and_explained(name, tmp_path):
    rule, break_it, kind = forger.BREAKS[name]
    log = opened()
    start = len(log.leaves)
    break_it(log)
    report = verify.audit(log.write(tmp_path), forger.VKEYS, TERMS)
    first = report.violations[0]
    assert (first.rule, first.type) == (rule, kind)
    assert {one.rule for one in report.violations} == {rule}
    assert report.broken == len(report.violations)
    assert start <= first.index < len(log.leaves)
    assert len(first.words.split()) >= 4
    if rule != "R4":  # a lost study is only listed, unless the auditor asks
        with pytest.raises(VerifyError, match=rule):
            verify.verify_log(tmp_path, forger.VKEYS)


def test_all_findings_are_printed_and_the_last_line_names_the_first(tmp_path, capsys):
    log = opened()
    for name in ("R1", "R3", "R6", "R9"):
        forger.BREAKS[name][1](log)
    log.write(tmp_path)
    assert main(["verify", str(tmp_path), "--vkey", forger.VKEYS[0]]) == 1
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split(": ")[1] for line in lines if line.startswith("leaf ")] == [
        "R1", "R3", "R6", "R9",
    ]  # fmt: skip
    assert lines[-1].startswith("FAIL leaf ")
    assert lines[-1].endswith("(and 3 more)")


def test_findings_are_bounded_and_counted(tmp_path):
    log = opened()
    for number in range(1200):
        log.say("config.changed", {"digest": f"{number:064x}", "previous": "e" * 64})
    report = verify.audit(log.write(tmp_path), forger.VKEYS)
    assert (len(report.violations), report.broken) == (1000, 1200)


def test_terms_are_the_auditors(tmp_path, capsys):
    log = opened()
    forger.BREAKS["R4"][1](log)
    forger.BREAKS["R7"][1](log)
    folder, vkey = str(log.write(tmp_path)), forger.VKEYS[0]
    assert main(["verify", folder, "--vkey", vkey, "--review", "999999"]) == 0
    out = capsys.readouterr().out
    assert "still open: study.received at leaf 14" in out
    assert "noted: R7: the override at leaf" in out
    assert main(["verify", folder, "--vkey", vkey, "--review", "999999", "--sla", "60"]) == 1
    assert "R4: not closed within 60 seconds" in capsys.readouterr().out
    assert main(["verify", folder, "--vkey", vkey, "--review", "999999", "--approvals", "2"]) == 1
    assert "R2: approved by 1 of 2 persons" in capsys.readouterr().out
    for wrong in ("-1", "1.5", "x", "9" * 13):
        with pytest.raises(SystemExit):
            main(["verify", folder, "--vkey", vkey, "--skew", wrong])


def test_a_witness_bounds_the_time_of_leaves(tmp_path):
    log = opened()
    log.say("config.changed", {"digest": "2" * 64, "previous": "1" * 64},
            time=log.now + timedelta(minutes=30))  # fmt: skip
    witness = forger.Key("w.example", 4, "w")
    lines = "".join(f"log {key}\n" for key in forger.VKEYS)
    policy = Policy.parse(f"{lines}witness w {witness.vkey}\nquorum w\n")
    late = log.note([forger.ED, witness])
    log.write(tmp_path, [forger.ED])
    body = late.split("\n\n")[0] + "\n"
    time = int(log.now.timestamp())
    signed = forger.ED.line(body, time) + forger.ML.line(body, time + 3600)
    (tmp_path / "checkpoint").write_text(body + "\n" + signed + witness.line(body, time + 60))
    report = verify.audit(tmp_path, policy)
    assert [one.words for one in report.violations] == [
        "its time, 2026-03-01T08:30:00.560Z, is later than witness w signed for it"
    ]
    assert verify.audit(tmp_path, policy, Terms(skew_seconds=3600)).violations == ()


@pytest.mark.parametrize("time", [253_402_300_800, (1 << 63) - 1, 0])
def test_no_time_of_a_signature_breaks_the_verifier(time, tmp_path):
    log = opened()
    body = log.note([forger.ED]).split("\n\n")[0] + "\n"
    log.write(tmp_path)
    text = body + "\n" + forger.ED.line(body, 0) + forger.ML.line(body, time)
    (tmp_path / "checkpoint").write_text(text)
    assert bool(verify.audit(tmp_path, forger.VKEYS).violations) is (time == 0)


def test_what_was_forgotten_is_read_again(tmp_path, monkeypatch):
    log = opened()
    old = log.received("old")
    log.check(old)
    log.run(old)
    kept = {kind: log.last[kind] for kind in log.last}
    for number in range(120):
        log.study(str(number))
    log.last = kept
    log.deliver(old)
    log.close(old)
    log.last = {**kept, "delivery.started": log.last["delivery.started"]}
    log.deliver(old, kind="seg")
    log.say(
        "study.closed",
        {"outcome": "x", "counts": {}},
        [("study.received", forger.value("n"))],
        **old,
    )
    log.write(tmp_path)
    whole = verify.audit(tmp_path, forger.VKEYS)
    monkeypatch.setattr(trace_memory, "RUN", 256)
    recalled = []
    find = trace_memory.Places.candidates
    monkeypatch.setattr(
        trace_memory.Places, "candidates", lambda *a: recalled.append(1) or find(*a)
    )
    forgetful = verify.audit(tmp_path, forger.VKEYS)
    assert forgetful == whole
    assert [one.rule for one in whole.violations] == ["R3", "R0"]
    assert 4 < len(recalled) < 40


@pytest.mark.parametrize("bytes_too", [True, False])
def test_what_is_said_twice_is_found_wherever_the_two_stand(bytes_too, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_memory, "RUN", 256)
    log = opened()
    whose = log.study("a")
    index, data = len(log.leaves) - 1, log.leaves[-1]
    for number in range(200):
        log.study(str(number))
    if not bytes_too:
        data = data.replace(b'"generation":1', b'"generation":2')
    log.leaves.append(data)
    assert whose
    report = verify.audit(log.write(tmp_path), forger.VKEYS, TERMS)
    words = f"it is leaf {index} once more" if bytes_too else f"its idem is that of leaf {index}"
    assert [str(one) for one in report.violations] == [
        f"leaf {len(log.leaves) - 1} (study.closed): R0: {words}, and a fact is said once"
    ]


def test_a_registration_by_nobody_is_noted(tmp_path):
    log = opened()
    log.model = "c" * 64
    named = {"model": log.model, "id": "chest", "version": "1", "vendor": "v"}
    on = [("model.registered", log.say("model.registered", named))]
    log.say("model.approved", {"model": log.model, "by": "eve"}, on)
    log.say("model.activated", {"model": log.model}, log.on("model.approved"))
    report = verify.audit(log.write(tmp_path), forger.VKEYS)
    assert report.violations == ()
    assert report.notes == ("R2: leaf 14 registers a model and does not say by whom",)


def test_the_first_review_counts(tmp_path):
    log = opened()
    forger.r7_reviewed(log, "u9", timedelta(hours=1))
    log.now += timedelta(days=300)
    on, whose = log.on("consent.checked"), json.loads(log.leaves[-1])["subject"]
    log.say("override.reviewed", {"outcome": "again", "by": "u9"}, on, subject=whose)
    assert verify.audit(log.write(tmp_path), forger.VKEYS).violations == ()


def test_a_thousand_denials_cost_no_more_than_one(tmp_path, monkeypatch):
    """Each use asks for the denials between its permit and itself, and for no other."""
    log = opened()
    whose = log.received("a")
    for _ in range(300):
        log.check(whose, decision="deny")
    log.check(whose)
    on = log.on("input.sealed", "consent.checked", "model.activated")
    for number in range(20):
        log.say("inference.started", {"model": log.model, "run": f"r{number}"}, on, **whose)
    looked = []
    first = trace_memory.Moments.first
    monkeypatch.setattr(trace_memory.Moments, "first", lambda *a: looked.append(1) or first(*a))
    assert verify.audit(log.write(tmp_path), forger.VKEYS).violations == ()
    assert len(looked) < 200


# --- keys that follow each other ----------------------------------------------------------------

NEW = [forger.Key(forger.ORIGIN, kind, "new") for kind in (1, 6)]
OLD = [forger.ED, forger.ML]


def rotated(folder, steps, signers):
    log = opened()
    for keys in steps:
        log.say("key.rotated", {"keys": [key.fingerprint for key in keys], "by": "u7"})
        log.study("under these")
    return log.write(folder, signers)


@pytest.mark.parametrize(
    ("steps", "signers", "brought", "words"),
    [
        ([], OLD, OLD, None),
        ([[*NEW, *OLD]], [*NEW, *OLD], OLD, None),
        ([[*NEW, *OLD]], [*NEW, *OLD], NEW, None),
        ([[*NEW, *OLD]], [*NEW, *OLD], [*OLD, *NEW], None),
        ([[*NEW, *OLD]], OLD, [*OLD, *NEW], None),  # announced, not taken up yet
        ([[*NEW, *OLD], NEW], NEW, [*OLD, *NEW], None),
        ([[*NEW, *OLD], NEW], NEW, NEW, None),
        ([[*NEW, *OLD], NEW], NEW, OLD, "no key that you trust"),
        ([[*NEW, *OLD]], [*NEW, OLD[0]], [*OLD, *NEW], "has not signed it"),  # one is stripped
        ([[*NEW, *OLD], NEW], [NEW[0], OLD[1]], [*OLD, *NEW], "has not signed it"),
        ([], OLD, [*OLD, NEW[0]], "has not signed it"),  # a key that the log never had
        ([], [*OLD, *NEW], [*OLD, *NEW], "never announced"),
        ([NEW, NEW], OLD, OLD, "never announced"),
    ],
)
def test_the_keys_that_the_log_says_sign_it_must(steps, signers, brought, words, tmp_path):
    rotated(tmp_path, steps, signers)
    vkeys = [key.vkey for key in brought]
    if words is None:
        assert verify.verify_log(tmp_path, vkeys).notes == ()
    else:
        with pytest.raises(VerifyError, match=words):
            verify.verify_log(tmp_path, vkeys)


def test_a_log_that_names_its_first_key_only_says_nothing_of_the_second(tmp_path):
    log = forger.Forger().open([forger.ED])
    log.study("a")
    report = verify.verify_log(log.write(tmp_path), forger.VKEYS)
    assert [words[:30] for words in report.notes] == ["R8: the log does not say wheth"]
    (tmp_path / "checkpoint").write_text(log.note([forger.ED]))
    with pytest.raises(VerifyError, match="type 06"):
        verify.verify_log(tmp_path, forger.VKEYS)
