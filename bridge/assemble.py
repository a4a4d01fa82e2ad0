"""Is this input complete, and does this instance belong to it? Pure (design §4a).

`admit` decides what becomes of one received instance; `judge` decides which
series, and whether the study, may be called complete, with the evidence why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from bridge.study import Evidence, Instance, Patient

__all__ = [
    "Admission",
    "Answer",
    "Arrivals",
    "Known",
    "Rules",
    "Same",
    "Verdict",
    "admit",
    "apart_code",
    "judge",
    "kept",
    "settled",
]

Outcome = Literal["new", "duplicate", "correction", "conflict", "quarantine", "own"]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a study when one more instance comes."""

    identities: tuple[Patient, ...]
    corrected: frozenset[Patient]  # identities that corrected copies of held images carry


@dataclass(frozen=True, slots=True)
class Same:
    """An instance that is held under the same SOPInstanceUID.

    `same_pixels` is None where the decoded pixels could not be compared; `held` is False
    where that copy is in quarantine.
    """

    study_instance_uid: str
    series_instance_uid: str
    dataset_sha256: str
    same_pixels: bool | None
    held: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """What becomes of an instance; `reason` is for a PACS administrator, without PHI."""

    outcome: Outcome
    reason: str = ""


_NO_ID = "no PatientID in a study that has one"
_AN_ID = "a PatientID in a study that began without one"
_SECOND_ID = "a second patient's identity in one study"
_CODES = {_NO_ID: "no-patient-id", _AN_ID: "unexpected-patient-id", _SECOND_ID: "second-identity"}


def apart_code(words: str) -> str:
    """Give the code under which a leaf says why images are set apart: quarantine or conflict."""
    return _CODES.get(words, "conflict")


def admit(instance: Instance, known: Known | None, same: Same | None) -> Admission:
    """Decide what becomes of one received instance.

    A second copy with the same bytes is a duplicate; with other bytes but the same
    study, series and decoded pixels it is a correction or a transcoding; otherwise
    a conflict. In a study of one patient, an image of another patient, or of none,
    is quarantined alone (design §4a), and so is every other copy of it until its
    identity is the study's.
    """
    if instance.own:
        return Admission("own", "a result of ours came back; it is not read again")
    if same is not None:
        verdict = _of_same(instance, same)
        if same.held or verdict.outcome != "correction":
            return verdict
    if known is None or instance.patient in known.identities:
        return Admission("new")
    if not instance.patient.identified:
        return Admission("quarantine", _NO_ID)
    if instance.patient in known.corrected:
        return Admission("new")
    if not any(p.identified for p in known.identities):
        return Admission("quarantine", _AN_ID)
    return Admission("quarantine", _SECOND_ID)


def _of_same(instance: Instance, same: Same) -> Admission:
    if same.dataset_sha256 == instance.dataset_sha256:
        return Admission("duplicate", "sent again, byte for byte the same")
    if same.study_instance_uid != instance.study_instance_uid:
        return Admission("conflict", "the same SOPInstanceUID came in another study")
    if same.series_instance_uid != instance.series_instance_uid:
        return Admission("conflict", "the same SOPInstanceUID came in another series")
    if same.same_pixels:
        return Admission("correction", "sent again with other header values or another encoding")
    if same.same_pixels is None:
        return Admission("conflict", "the same SOPInstanceUID came again and cannot be compared")
    return Admission("conflict", "the same SOPInstanceUID came with other pixels")


@dataclass(frozen=True, slots=True)
class Rules:
    """[completion] of site.toml, in seconds."""

    quiet: float
    settle: float
    max_wait: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the source said: instances in each series of the study, and when it was asked."""

    at: datetime
    series: Mapping[str, int]
    readable: frozenset[str] = frozenset()  # series of a modality that some model reads


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What is held of a study's generation, with times by the indexer's steady clock.

    `last` is when the newest instance of each series came; `since` is when this process
    began to watch and the listener to listen, so that no restart shortens a quiet period.
    `own` are series of our own results, which no count compares; `apart` counts images that
    came and wait in quarantine or were discarded: the source counts them, none is missing.
    """

    held: Mapping[str, int]
    last: Mapping[str, datetime]
    opened: datetime
    since: datetime
    declared: bool
    answers: Sequence[Answer]
    askable: bool
    readable: frozenset[str]  # series that a route could read
    own: frozenset[str] = frozenset()
    apart: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which series are complete and whether the study is; when to look again; in words."""

    series: Mapping[str, Evidence]
    study: Evidence | None
    look_again_in: float
    ask: bool
    words: str


def settled(answers: Sequence[Answer], last: datetime, settle: float) -> Answer | None:
    """Find the counts that two queries `settle` seconds apart agree on, no instance between."""
    if len(answers) < 2:
        return None
    first, second = answers[-2], answers[-1]
    calm = (second.at - first.at).total_seconds() >= settle and last <= first.at
    return second if calm and first.series == second.series else None


def kept(answers: Sequence[Answer], new: Answer, last: datetime) -> list[Answer]:
    """Which answers count after a new one: it, and the oldest that says the same since `last`.

    The oldest keeps its time, so that `settle` seconds can pass; `last` is when the newest
    instance came, because an answer from before it proves nothing about what came after.
    """
    first = next((a for a in answers if a.series == new.series and a.at >= last), None)
    return [new] if first is None else [first, new]


def judge(arrivals: Arrivals, rules: Rules, now: datetime) -> Verdict:
    """Judge the completeness of a generation at `now` (steady clock)."""
    held = sum(arrivals.held.values())
    if arrivals.declared:
        return _all(arrivals, Evidence("explicit", held, None, 0))
    newest = max(arrivals.last.values(), default=arrivals.opened)
    waited = (now - arrivals.opened).total_seconds()
    answer = arrivals.answers[-1] if arrivals.answers else None
    missing = _missing(arrivals, answer)
    agreed = settled(arrivals.answers, newest, rules.settle)
    if agreed is not None and not missing and _covers(arrivals, agreed):
        expected = _comparable(arrivals, agreed.series)
        return _all(arrivals, Evidence("counts", held, expected, round(waited)))
    until_max = _until_max(arrivals, rules, now)
    if until_max <= 0:
        whole = held + missing if missing else None
        evidence = Evidence("max-wait", held, whole, round(waited), incomplete=missing > 0)
        return _all(arrivals, evidence)
    told = answer is not None and _covers(arrivals, answer)
    if arrivals.askable and (answer is None or (answer.at < newest and not told)):
        return Verdict({}, None, 0.2, ask=True, words=f"{held} images, asking the source")
    if missing:
        words = f"{held} of {held + missing} images"
        return Verdict({}, None, min(rules.settle or 1, until_max), ask=True, words=words)
    if arrivals.askable and told:
        words = f"{held} images, the source agrees, asking once more"
        return Verdict({}, None, min(rules.settle or 1, until_max), ask=True, words=words)
    return _by_quiet(arrivals, rules, now, newest, until_max)


def _until_max(arrivals: Arrivals, rules: Rules, now: datetime) -> float:
    """Seconds until the longest wait is over; a process that just started is quiet first."""
    waited = (now - arrivals.opened).total_seconds()
    watched = (now - arrivals.since).total_seconds()
    return max(rules.max_wait - waited, min(rules.quiet, rules.max_wait) - watched)


def _by_quiet(
    arrivals: Arrivals, rules: Rules, now: datetime, newest: datetime, until_max: float
) -> Verdict:
    def quiet(last: datetime) -> float:
        return (now - max(last, arrivals.since)).total_seconds()

    held = sum(arrivals.held.values())
    done = {
        uid: Evidence("quiet", arrivals.held[uid], None, round(quiet(last)))
        for uid, last in arrivals.last.items()
        if quiet(last) >= rules.quiet
    }
    if quiet(newest) >= rules.quiet:
        return _all(arrivals, Evidence("quiet", held, None, round(quiet(newest))))
    waits = [rules.quiet - quiet(last) for uid, last in arrivals.last.items() if uid not in done]
    look = max(0.05, min([*waits, until_max]))
    words = f"{held} images, {quiet(newest):.0f} s quiet of {rules.quiet:g} s"
    return Verdict(done, None, look, ask=False, words=words)


def _all(arrivals: Arrivals, evidence: Evidence) -> Verdict:
    return Verdict(
        dict.fromkeys(arrivals.held, evidence), evidence, 0.0, ask=False, words=evidence.words
    )


def _compared(arrivals: Arrivals, series: Iterable[str]) -> set[str]:
    wanted = set(arrivals.held) | arrivals.readable
    return {uid for uid in series if uid in wanted and uid not in arrivals.own}


def _covers(arrivals: Arrivals, answer: Answer) -> bool:
    """Whether the source counts every series that we hold: else its counts prove nothing."""
    return all(uid in answer.series for uid in arrivals.held if uid not in arrivals.own)


def _comparable(arrivals: Arrivals, series: Mapping[str, int]) -> int:
    return sum(series[uid] for uid in _compared(arrivals, series))


def _missing(arrivals: Arrivals, answer: Answer | None) -> int:
    """Count the images that the source counts above what we hold, series by series."""
    if answer is None:
        return 0
    return sum(
        max(0, answer.series[uid] - arrivals.held.get(uid, 0) - arrivals.apart.get(uid, 0))
        for uid in _compared(arrivals, answer.series)
    )
