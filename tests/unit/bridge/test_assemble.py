"""bridge.assemble: what becomes of an instance, and when an input is called complete (§4a)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bridge.assemble import Answer, Arrivals, Known, Rules, Same, admit, judge, kept, settled
from bridge.study import Instance, Patient

START = datetime(2026, 11, 24, 10, tzinfo=UTC)
RULES = Rules(quiet=30, settle=5, max_wait=3600)
ANNA, BERT, NOBODY = Patient("GH", "A-1"), Patient("GH", "B-2"), Patient("GH", "")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def instance(patient: Patient = ANNA, **changes) -> Instance:
    made = Instance(
        arrival="a", sop_instance_uid="1.1", sop_class_uid="1.2", series_instance_uid="1.3",
        study_instance_uid="1.4", transfer_syntax_uid="1.2.840.10008.1.2", patient=patient,
        patient_name="", accession_number="", study_date="", modality="CT", calling_ae="CT1",
        dataset_sha256="aa", size=1, received_at=START, attributes={},
    )  # fmt: skip
    return replace(made, **changes)


def known(*identities: Patient, on_images: tuple[Patient, ...] | None = None) -> Known:
    return Known(identities, frozenset(identities if on_images is None else on_images))


def arrivals(held: dict[str, int] | None = None, last: float = 0, **changes) -> Arrivals:
    held = {"s1": 10} if held is None else held
    made = Arrivals(
        held=held, last=dict.fromkeys(held, at(last)), opened=START, since=START, declared=False,
        answers=(), askable=False, readable=frozenset(),
    )  # fmt: skip
    return replace(made, **changes)


def answers(*told: tuple[float, dict[str, int]], readable=()) -> tuple[Answer, ...]:
    return tuple(Answer(at(seconds), series, frozenset(readable)) for seconds, series in told)


# admit


def test_the_first_image_of_a_study_is_new():
    assert admit(instance(), None, None).outcome == "new"


@pytest.mark.parametrize(
    ("patient", "identities", "outcome", "words"),
    [
        (ANNA, (ANNA,), "new", ""),
        (BERT, (ANNA,), "quarantine", "second patient"),
        (NOBODY, (ANNA,), "quarantine", "no PatientID"),
        (ANNA, (NOBODY,), "quarantine", "began without"),
        (NOBODY, (NOBODY,), "new", ""),
        (BERT, (ANNA, BERT), "new", ""),  # accepted by a person
    ],
)
def test_identity_decides_what_belongs_to_a_study(patient, identities, outcome, words):
    verdict = admit(instance(patient), known(*identities), None)
    assert verdict.outcome == outcome
    assert words in verdict.reason


def test_an_image_with_the_corrected_identity_belongs_to_the_study():
    verdict = admit(instance(BERT), known(ANNA, on_images=(ANNA, BERT)), None)
    assert verdict.outcome == "new"


def test_a_result_of_ours_is_never_read_again():
    assert admit(instance(own=True), None, None).outcome == "own"
    assert admit(instance(BERT, own=True), known(ANNA), None).outcome == "own"


@pytest.mark.parametrize(
    ("same", "outcome", "words"),
    [
        (Same("1.4", "1.3", "aa", same_pixels=None, held=True), "duplicate", "byte for byte"),
        (Same("1.4", "1.3", "bb", same_pixels=True, held=True), "correction", "other header"),
        (Same("1.4", "1.3", "bb", same_pixels=False, held=True), "conflict", "other pixels"),
        (Same("1.4", "1.3", "bb", same_pixels=None, held=True), "conflict", "cannot be compared"),
        (Same("1.9", "1.3", "bb", same_pixels=True, held=True), "conflict", "another study"),
        (Same("1.4", "1.9", "bb", same_pixels=True, held=True), "conflict", "another series"),
    ],
)
def test_a_second_copy(same, outcome, words):
    verdict = admit(instance(), known(ANNA), same)
    assert verdict.outcome == outcome
    assert words in verdict.reason


def test_a_correction_of_the_identity_is_no_second_patient():
    same = Same("1.4", "1.3", "bb", same_pixels=True, held=True)
    assert admit(instance(BERT), known(ANNA), same).outcome == "correction"


@pytest.mark.parametrize(
    ("patient", "outcome"), [(ANNA, "new"), (BERT, "quarantine"), (NOBODY, "quarantine")]
)
def test_another_copy_of_a_quarantined_image_is_judged_by_its_identity(patient, outcome):
    """Neither another encoding nor a correction lets a second patient slip into a study."""
    same = Same("1.4", "1.3", "bb", same_pixels=True, held=False)
    assert admit(instance(patient), known(ANNA), same).outcome == outcome


def test_a_quarantined_image_sent_again_stays_where_it_is():
    same = Same("1.4", "1.3", "aa", same_pixels=None, held=False)
    assert admit(instance(BERT), known(ANNA), same).outcome == "duplicate"


def test_reasons_hold_nothing_of_the_patient():
    for patient in (ANNA, BERT, NOBODY):
        for identities in ((ANNA,), (NOBODY,), (ANNA, BERT)):
            reason = admit(instance(patient), known(*identities), None).reason
            assert "A-1" not in reason
            assert "B-2" not in reason


# judge: the quiet period


def test_quiet_for_long_enough_is_complete():
    verdict = judge(arrivals(last=10), RULES, at(40))
    assert verdict.study is not None
    assert (verdict.study.kind, verdict.study.held, verdict.study.seconds) == ("quiet", 10, 30)
    assert set(verdict.series) == {"s1"}
    assert not verdict.ask


def test_a_moment_before_it_is_not_and_the_next_look_is_then():
    verdict = judge(arrivals(last=10), RULES, at(39))
    assert verdict.study is None
    assert not verdict.series
    assert verdict.look_again_in == pytest.approx(1)


def test_a_series_is_complete_by_itself_while_another_still_comes():
    both = replace(arrivals({"s1": 10, "s2": 3}), last={"s1": at(0), "s2": at(29)})
    verdict = judge(both, RULES, at(30))
    assert verdict.study is None
    assert set(verdict.series) == {"s1"}
    assert verdict.series["s1"].held == 10
    assert verdict.look_again_in == pytest.approx(29)


def test_a_restart_never_shortens_a_quiet_period():
    restarted = arrivals(last=10, since=at(35))
    assert judge(restarted, RULES, at(41)).study is None
    assert judge(restarted, RULES, at(64)).study is None
    assert judge(restarted, RULES, at(65)).study is not None


def test_a_restart_after_a_long_outage_does_not_seal_at_once():
    """The sender may still hold what we did not take while we were down."""
    restarted = arrivals(since=at(7200))
    assert judge(restarted, RULES, at(7200)).study is None
    assert judge(restarted, RULES, at(7229)).study is None
    assert judge(restarted, RULES, at(7230)).study is not None


# judge: the longest wait, and an explicit call


def test_the_longest_wait_ends_a_trickle():
    trickle = arrivals(last=3599)
    verdict = judge(trickle, RULES, at(3600))
    assert verdict.study is not None
    assert verdict.study.kind == "max-wait"
    assert not verdict.study.incomplete


def test_declared_complete_is_complete_whatever_is_missing():
    told = arrivals(declared=True, askable=True, answers=answers((0, {"s1": 400})))
    verdict = judge(told, RULES, at(1))
    assert verdict.study is not None
    assert verdict.study.kind == "explicit"


# judge: settled counts


def test_an_askable_source_is_asked_first():
    verdict = judge(arrivals(askable=True), RULES, at(0))
    assert verdict.ask
    assert verdict.study is None


def test_two_equal_answers_settle_seconds_apart_are_complete():
    told = arrivals(askable=True, answers=answers((1, {"s1": 10}), (6, {"s1": 10})))
    verdict = judge(told, RULES, at(6))
    assert verdict.study is not None
    assert (verdict.study.kind, verdict.study.held, verdict.study.expected) == ("counts", 10, 10)


@pytest.mark.parametrize(
    ("told", "last"),
    [
        (((1, {"s1": 10}),), 0),  # one answer
        (((1, {"s1": 10}), (5, {"s1": 10})), 0),  # too close
        (((1, {"s1": 9}), (6, {"s1": 10})), 0),  # not equal
        (((1, {"s1": 10}), (6, {"s1": 10})), 3),  # an instance between
    ],
)
def test_counts_that_did_not_settle_are_asked_again(told, last):
    verdict = judge(arrivals(last=last, askable=True, answers=answers(*told)), RULES, at(6))
    assert verdict.study is None
    assert verdict.ask


def test_answers_from_before_the_newest_image_are_not_kept():
    """A source that holds everything from the start is believed as soon as we hold it too."""
    early = Answer(at(0), {"s1": 10})
    assert kept([], early, at(0)) == [early]
    second = Answer(at(5), {"s1": 10})
    assert kept([early], second, at(4)) == [second]
    third = Answer(at(10), {"s1": 10})
    assert kept([second], third, at(4)) == [second, third]
    fourth = Answer(at(15), {"s1": 12})
    assert kept([second, third], fourth, at(4)) == [fourth]


def test_settled_wants_two_answers():
    assert settled([], START, 5) is None
    assert settled(answers((0, {"s1": 1})), START, 5) is None


def test_missing_images_block_the_quiet_period():
    short = arrivals(askable=True, answers=answers((1, {"s1": 12}), (6, {"s1": 12})))
    verdict = judge(short, RULES, at(1000))
    assert verdict.study is None
    assert not verdict.series
    assert verdict.words == "10 of 12 images"
    assert verdict.ask


def test_missing_images_block_also_when_the_source_no_longer_answers():
    silent = arrivals(askable=False, answers=answers((1, {"s1": 12})))
    assert judge(silent, RULES, at(1000)).study is None


def test_missing_images_at_the_longest_wait_are_run_as_incomplete():
    short = arrivals({"s1": 400}, askable=True, answers=answers((1, {"s1": 412})))
    verdict = judge(short, RULES, at(3600))
    assert verdict.study is not None
    assert verdict.study.incomplete
    assert verdict.study.words.startswith("incomplete: 400 of 412")


def test_a_readable_series_that_we_do_not_hold_is_missing():
    told = answers((1, {"s1": 10, "s2": 5}), (6, {"s1": 10, "s2": 5}), readable={"s2"})
    verdict = judge(
        arrivals(askable=True, answers=told, readable=frozenset({"s2"})), RULES, at(100)
    )
    assert verdict.study is None
    assert verdict.words == "10 of 15 images"


def test_a_series_that_no_route_reads_is_not_missing():
    told = answers((1, {"s1": 10, "pr": 5}), (6, {"s1": 10, "pr": 5}))
    verdict = judge(arrivals(askable=True, answers=told), RULES, at(6))
    assert verdict.study is not None
    assert verdict.study.expected == 10


def test_series_of_our_own_results_are_not_compared():
    told = answers((1, {"s1": 10, "sr": 1}), (6, {"s1": 10, "sr": 1}), readable={"sr"})
    own = arrivals(askable=True, answers=told, readable=frozenset({"sr"}), own=frozenset({"sr"}))
    verdict = judge(own, RULES, at(6))
    assert verdict.study is not None
    assert verdict.study.expected == 10


def test_a_source_that_does_not_count_what_we_hold_proves_nothing():
    told = answers((20, {"other": 4}), (26, {"other": 4}))
    partly = arrivals({"s1": 10, "s2": 2}, last=10, askable=True, answers=told)
    assert judge(partly, RULES, at(30)).study is None
    verdict = judge(partly, RULES, at(40))
    assert verdict.study is not None
    assert verdict.study.kind == "quiet"


def test_it_is_asked_again_when_an_image_of_an_uncounted_series_came():
    told = answers((1, {"s1": 10}), (6, {"s1": 10}))
    verdict = judge(arrivals({"s1": 10, "s2": 1}, last=8, askable=True, answers=told), RULES, at(9))
    assert verdict.ask
    assert verdict.study is None


def test_more_than_the_source_counts_is_no_reason_to_wait():
    told = answers((1, {"s1": 8}), (6, {"s1": 8}))
    assert judge(arrivals(askable=True, answers=told), RULES, at(6)).study is not None


def test_a_source_without_an_answer_is_not_askable():
    """follow says askable=False where the query failed; then only quiet counts."""
    assert judge(arrivals(askable=False), RULES, at(29)).study is None
    assert judge(arrivals(askable=False), RULES, at(30)).study is not None


def test_images_set_apart_are_not_missing():
    told = answers((0, {"s1": 12}), (10, {"s1": 12}))
    waiting = arrivals(askable=True, answers=told)
    verdict = judge(replace(waiting, apart={"s1": 2}), RULES, at(11))
    assert verdict.study is not None
    assert verdict.words == "the source counts 12 images, 10 held and 2 set apart, asked twice"
    blocked = judge(replace(waiting, apart={"s1": 1}), RULES, at(11))
    assert blocked.study is None
    assert blocked.words == "10 of 11 images"
