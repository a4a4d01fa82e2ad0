"""Completeness under any arrival: order does not matter, no clock shortens a wait, and the
evidence says only what was seen (design §4a)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bridge.assemble import Answer, Arrivals, Known, Rules, Same, admit, judge, kept
from bridge.study import Instance, Patient

START = datetime(2026, 11, 24, 10, tzinfo=UTC)
SERIES = ["s1", "s2", "s3"]
PATIENTS = [Patient("GH", "A-1"), Patient("GH", "B-2"), Patient("GH", ""), Patient("X", "A-1")]

seconds = st.integers(0, 5000)
rules = st.builds(Rules, st.integers(0, 60), st.integers(0, 10), st.integers(0, 4000))
counts = st.dictionaries(st.sampled_from(SERIES), st.integers(0, 9), min_size=1)


def at(moment: float) -> datetime:
    return START + timedelta(seconds=moment)


@st.composite
def arrivals(draw) -> Arrivals:
    images = draw(st.lists(st.tuples(st.sampled_from(SERIES), seconds), min_size=1, max_size=12))
    told = draw(st.lists(st.tuples(seconds, counts), max_size=2))
    return Arrivals(
        held={uid: sum(u == uid for u, _ in images) for uid, _ in images},
        last={uid: at(max(m for u, m in images if u == uid)) for uid, _ in images},
        opened=at(min(m for _, m in images)),
        since=at(draw(seconds)),
        declared=draw(st.booleans()),
        answers=[Answer(at(m), series) for m, series in sorted(told, key=lambda t: t[0])],
        askable=draw(st.booleans()),
        readable=frozenset(draw(st.sets(st.sampled_from(SERIES)))),
        own=frozenset(draw(st.sets(st.sampled_from(["own1", "own2"])))),
    )


@given(arrivals(), rules, seconds)
def test_the_order_of_series_does_not_matter(facts, rule, now):
    backwards = replace(
        facts,
        held=dict(reversed(facts.held.items())),
        last=dict(reversed(facts.last.items())),
    )
    assert judge(facts, rule, at(now)) == judge(backwards, rule, at(now))


@given(arrivals(), rules, seconds)
def test_the_evidence_says_only_what_is_held(facts, rule, now):
    verdict = judge(facts, rule, at(now))
    assert set(verdict.series) <= set(facts.held)
    evidence = verdict.study
    if evidence is None:
        assert verdict.look_again_in > 0
        return
    assert set(verdict.series) == set(facts.held)
    assert evidence.held == sum(facts.held.values())
    assert not verdict.ask
    if evidence.incomplete:
        assert evidence.kind == "max-wait"
        assert evidence.expected > evidence.held
    if evidence.kind == "counts":
        first, second = facts.answers
        assert first.series == second.series
        assert (second.at - first.at).total_seconds() >= rule.settle
        assert max(facts.last.values()) <= first.at
        assert all(facts.held[uid] >= second.series[uid] for uid in facts.held)
    if evidence.kind == "explicit":
        assert facts.declared


@given(arrivals(), rules, seconds)
def test_nothing_is_quiet_before_its_time(facts, rule, now):
    verdict = judge(facts, rule, at(now))
    for uid, evidence in verdict.series.items():
        if evidence.kind == "quiet":
            assert (at(now) - facts.last[uid]).total_seconds() >= rule.quiet
            assert (at(now) - facts.since).total_seconds() >= rule.quiet
            assert evidence.held == facts.held[uid] or verdict.study is not None


@given(arrivals(), rules, seconds, st.integers(1, 3600))
def test_a_step_of_the_clock_backwards_never_completes_anything(facts, rule, now, step):
    before = judge(facts, rule, at(now))
    stepped = judge(facts, rule, at(now - step))
    if before.study is None:
        assert stepped.study is None
    assert set(stepped.series) <= set(before.series)


@given(arrivals(), rules, seconds, st.integers(0, 3600))
def test_a_restart_never_completes_anything(facts, rule, now, later):
    """`since` moves on when the process starts again."""
    restarted = replace(facts, since=facts.since + timedelta(seconds=later))
    before, after = judge(facts, rule, at(now)), judge(restarted, rule, at(now))
    if before.study is None:
        assert after.study is None
    assert set(after.series) <= set(before.series)


@given(arrivals(), rules, seconds, st.sampled_from(SERIES))
def test_one_more_image_never_completes_a_quiet_study(facts, rule, now, uid):
    facts = replace(facts, answers=(), askable=False)
    more = replace(
        facts,
        held={**facts.held, uid: facts.held.get(uid, 0) + 1},
        last={**facts.last, uid: max(at(now), facts.last.get(uid, at(now)))},
    )
    if judge(facts, rule, at(now)).study is None:
        assert judge(more, rule, at(now)).study is None


@given(arrivals(), rules)
def test_everything_ends(facts, rule):
    """At the latest after the longest wait and one quiet period of this process."""
    end = max(
        facts.opened + timedelta(seconds=rule.max_wait), facts.since + timedelta(seconds=rule.quiet)
    )
    assert judge(facts, rule, end).study is not None


@given(arrivals(), rules, seconds)
def test_looking_again_when_told_is_never_too_late(facts, rule, now):
    """Between now and the next look nothing becomes complete that was not at the look."""
    verdict = judge(replace(facts, askable=False), rule, at(now))
    if verdict.study is None and not verdict.ask and verdict.look_again_in > 0.06:
        early = at(now + verdict.look_again_in - 0.02)
        then = judge(replace(facts, askable=False), rule, early)
        assert then.study is None
        assert set(then.series) == set(verdict.series)


@given(st.lists(st.tuples(seconds, counts), min_size=1, max_size=8), seconds)
def test_kept_answers_settle_exactly_when_two_agree_since_the_last_image(told, last):
    answers: list[Answer] = []
    asked = [Answer(at(m), series) for m, series in sorted(told, key=lambda t: t[0])]
    for one in asked:
        answers = kept(answers, one, at(last))
    assert 1 <= len(answers) <= 2
    assert answers[-1] is asked[-1]
    assert all(one.series == asked[-1].series for one in answers)
    run = []
    for one in reversed(asked):
        if one.series != asked[-1].series or one.at < at(last):
            break
        run.append(one)
    if len(run) > 1:
        assert answers[0].at == run[-1].at


instances = st.builds(
    lambda patient, own, sha: Instance(
        arrival="a", sop_instance_uid="1.1", sop_class_uid="1.2", series_instance_uid="1.3",
        study_instance_uid="1.4", transfer_syntax_uid="", patient=patient, patient_name="",
        accession_number="", study_date="", modality="CT", calling_ae="", dataset_sha256=sha,
        size=1, received_at=START, attributes={}, own=own,
    ),
    st.sampled_from(PATIENTS),
    st.booleans(),
    st.sampled_from(["aa", "bb"]),
)  # fmt: skip
copies = st.none() | st.builds(
    Same,
    st.sampled_from(["1.4", "1.9"]),
    st.sampled_from(["1.3", "1.9"]),
    st.sampled_from(["aa", "bb"]),
    st.sampled_from([None, True, False]),
    st.booleans(),
)
knowledge = st.none() | st.builds(
    lambda identities, images: Known(tuple(identities), frozenset(images)),
    st.lists(st.sampled_from(PATIENTS), min_size=1, max_size=2, unique=True),
    st.sets(st.sampled_from(PATIENTS), min_size=1),
)


@given(instances, knowledge, copies)
def test_a_stranger_is_never_taken_in_unasked(instance, known, same):
    verdict = admit(instance, known, same)
    assert verdict.outcome == "new" or verdict.reason
    if instance.own:
        assert verdict.outcome == "own"
    if verdict.outcome == "new" and known is not None:
        assert instance.patient in {*known.identities, *known.corrected}
    if verdict.outcome == "new" and same is not None:
        assert not same.held
    if verdict.outcome == "correction":
        assert same.held
        assert same.same_pixels
