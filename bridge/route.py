"""Which active models want which series, and for each that does not, the reason. Pure.

A route is opened when its input is complete and its choice cannot change any more:
where the rule could still choose otherwise, the whole study must be complete
(design §4a).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydicom.dataset import Dataset

from bridge.assemble import Verdict
from bridge.study import Evidence
from models.errors import PackageError
from models.package import Package
from models.select import Choice, SeriesFacts, StudyFacts, Unwanted, choose

__all__ = [
    "URGENCY",
    "Held",
    "Ready",
    "Refused",
    "is_urgent",
    "modalities",
    "plan",
    "series_facts",
    "study_facts",
]


URGENCY = ("RequestedProcedurePriority", "StudyPriorityID", "RequestAttributesSequence")
"""The attributes by which an image says that its study is urgent."""

_URGENT = {"STAT", "HIGH"}


def is_urgent(header: Dataset) -> bool:
    """Whether an image's header asks for priority: STAT or HIGH, in the study or its request."""
    requests = header.get("RequestAttributesSequence") or []
    said = [holder.get(keyword) for holder in (header, *requests) for keyword in URGENCY[:2]]
    return any(str(value or "").strip().upper() in _URGENT for value in said)


class Held(Protocol):
    """What routing needs to know of a held instance."""

    @property
    def arrival(self) -> str:
        """Name of its file."""

    @property
    def series_instance_uid(self) -> str:
        """SeriesInstanceUID."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """JSON values of the keywords that rules read."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A route to open: the series and the arrivals of each role, and why they are complete."""

    package: Package
    roles: Mapping[str, str]
    arrivals: Mapping[str, tuple[str, ...]]
    evidence: Evidence
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A model that does not want this study, and why, in words."""

    package: Package
    reason: str


def _first(group: Sequence[Held]) -> Held:
    def number(instance: Held) -> tuple[float, str]:
        value = instance.attributes.get("InstanceNumber")
        try:
            return (float(value), instance.arrival) if value is not None else (0, instance.arrival)
        except (TypeError, ValueError):
            return (0, instance.arrival)

    return min(group, key=number)


def modalities(packages: Sequence[Package]) -> frozenset[str]:
    """Which modalities some model reads; empty where one does not say."""
    said = [
        str(one.get("modality", ""))
        for package in packages
        for one in package.manifest["network_data_format"]["inputs"].values()
    ]
    return frozenset(said) if all(said) else frozenset()


def series_facts(held: Sequence[Held], verdict: Verdict) -> list[SeriesFacts]:
    """Give each series as rules see it: its first image's attributes, its count."""
    groups: dict[str, list[Held]] = defaultdict(list)
    for instance in held:
        groups[instance.series_instance_uid].append(instance)
    return [
        SeriesFacts(uid, len(group), _first(group).attributes, uid in verdict.series)
        for uid, group in groups.items()
    ]


def study_facts(held: Sequence[Held]) -> StudyFacts:
    """Give what rules may know of the patient: age and sex, None where unknown."""
    for instance in held:
        age = instance.attributes.get("AgeYears")
        sex = instance.attributes.get("PatientSex")
        if age is not None or sex:
            return StudyFacts(None if age is None else float(age), str(sex) if sex else None)
    return StudyFacts()


def plan(
    packages: Sequence[Package], held: Sequence[Held], verdict: Verdict
) -> tuple[list[Ready], list[Refused]]:
    """Say which models' inputs are ready now, and which models want nothing of this study.

    A refusal is final only when the study is complete; before, more images may come.
    """
    facts, patient = series_facts(held, verdict), study_facts(held)
    by_series: dict[str, list[str]] = defaultdict(list)
    for instance in held:
        by_series[instance.series_instance_uid].append(instance.arrival)
    ready, refused = [], []
    for package in packages:
        try:
            choice = choose(package, facts, patient)
        except PackageError as error:  # a vendor's pattern that takes too long on these texts
            refused.append(Refused(package, str(error)))
            continue
        match choice:
            case Choice(roles=roles, warnings=warnings, settled=settled):
                evidence = _evidence(roles, settled=settled, verdict=verdict)
                if evidence is not None:
                    files = {role: tuple(by_series[uid]) for role, uid in roles.items()}
                    ready.append(Ready(package, roles, files, evidence, warnings))
            case Unwanted(reason=reason):
                refused.append(Refused(package, reason))
    return ready, refused


def _evidence(roles: Mapping[str, str], *, settled: bool, verdict: Verdict) -> Evidence | None:
    if verdict.study is not None:
        return verdict.study
    if not settled or any(uid not in verdict.series for uid in roles.values()):
        return None
    return verdict.series[next(iter(roles.values()))]
