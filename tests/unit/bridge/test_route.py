"""bridge.route: which models want which series, when, and why not."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.dataset import Dataset

from bridge import route
from bridge.assemble import Verdict
from bridge.study import Evidence
from models.errors import PackageError

QUIET = Evidence("quiet", 2, None, 30)
WHOLE = Evidence("quiet", 4, None, 30)


@dataclass
class Held:
    arrival: str
    series_instance_uid: str
    attributes: dict[str, Any] = field(default_factory=dict)


def held(series: str = "s1", count: int = 2, **attributes) -> list[Held]:
    return [
        Held(f"{series}-{n}", series, {"Modality": "CT", "InstanceNumber": n + 1, **attributes})
        for n in range(count)
    ]


def package(name: str = "m", **rules) -> Any:
    conditions = rules.pop("conditions", {"Modality": "CT"})
    said = {
        "series": [{"role": "image", "selections": [{"name": "x", "conditions": conditions}]}],
        **rules,
    }
    manifest = {"network_data_format": {"inputs": {"x": {"modality": "CT"}}}}
    return SimpleNamespace(id=name, input=said, manifest=manifest)


def verdict(*series: str, whole: bool = False) -> Verdict:
    done = dict.fromkeys(series, QUIET)
    return Verdict(done, WHOLE if whole else None, 0, ask=False, words="")


def test_a_series_that_is_complete_opens_its_route_before_the_study():
    ready, refused = route.plan([package()], held(), verdict("s1"))
    (one,) = ready
    assert one.roles == {"image": "s1"}
    assert one.arrivals == {"image": ("s1-0", "s1-1")}
    assert one.evidence is QUIET
    assert not refused


def test_a_series_that_still_comes_opens_nothing():
    assert route.plan([package()], held(), verdict()) == ([], [])


def test_a_choice_that_could_change_waits_for_the_study():
    two = [*held("s1"), *held("s2", 3)]
    assert route.plan([package()], two, verdict("s1", "s2"))[0] == []
    (one,) = route.plan([package()], two, verdict("s1", "s2", whole=True))[0]
    assert one.roles == {"image": "s2"}
    assert one.evidence is WHOLE


def test_a_rule_with_prefer_waits_for_the_study():
    choosy = package(prefer={"SeriesDescription": "soft"})
    assert route.plan([choosy], held(), verdict("s1"))[0] == []
    assert len(route.plan([choosy], held(), verdict("s1", whole=True))[0]) == 1


@pytest.mark.parametrize(
    ("said", "urgent"),
    [
        ({}, False), ({"RequestedProcedurePriority": "STAT"}, True),
        ({"RequestedProcedurePriority": " high "}, True),
        ({"RequestedProcedurePriority": "ROUTINE"}, False),
        ({"RequestedProcedurePriority": ""}, False), ({"StudyPriorityID": "HIGH"}, True),
        ({"StudyPriorityID": "MED"}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_an_urgent_study_says_so_in_its_header(said, urgent, inside):
    header, holder = Dataset(), Dataset()
    for keyword, value in said.items():
        setattr(holder if inside else header, keyword, value)
    header.RequestAttributesSequence = [holder]
    assert route.is_urgent(header) is urgent


def test_one_model_waits_for_no_other():
    models = [package("a"), package("b", prefer={"SeriesDescription": "soft"})]
    ready, _ = route.plan(models, held(), verdict("s1"))
    assert [one.package.id for one in ready] == ["a"]


def test_a_model_that_wants_nothing_says_why():
    ready, (refused,) = route.plan([package()], held(Modality="MR"), verdict("s1", whole=True))
    assert not ready
    assert "MR" in refused.reason
    assert "Modality" in refused.reason


def test_a_pattern_that_takes_too_long_is_that_models_refusal_alone(monkeypatch):
    real = route.choose

    def choose(package, *args):
        if package.id == "slow":
            raise PackageError("configs/metadata.json", "deployment.input", "too slow", "Mend it.")
        return real(package, *args)

    monkeypatch.setattr(route, "choose", choose)
    ready, refused = route.plan([package("slow"), package("good")], held(), verdict("s1"))
    assert [one.package.id for one in ready] == ["good"]
    assert "too slow" in refused[0].reason


def test_the_order_of_arrival_does_not_matter():
    images = [*held("s1"), *held("s2", 3)]
    forwards = route.plan([package()], images, verdict("s1", "s2", whole=True))
    backwards = route.plan([package()], images[::-1], verdict("s2", "s1", whole=True))
    assert forwards[0][0].roles == backwards[0][0].roles


def test_facts_are_of_the_first_image_by_number():
    images = held(count=3)
    images[0].attributes |= {"InstanceNumber": 9, "SliceThickness": 1}
    images[2].attributes |= {"InstanceNumber": 1, "SliceThickness": 3}
    (facts,) = route.series_facts(images, verdict("s1"))
    assert facts.attributes["SliceThickness"] == 3
    assert facts.count == 3
    assert facts.complete


@pytest.mark.parametrize("number", [None, "x", [1, 2], {}])
def test_a_strange_instance_number_stops_nothing(number):
    images = held(InstanceNumber=number)
    assert len(route.series_facts(images, verdict())) == 1


def test_patient_facts_come_from_any_image():
    images = held(count=2)
    images[1].attributes |= {"AgeYears": 42.0, "PatientSex": "F"}
    facts = route.study_facts(images)
    assert (facts.age_years, facts.sex) == (42.0, "F")
    assert route.study_facts(held()).age_years is None


def test_modalities_are_those_of_the_models_or_any():
    silent = package()
    silent.manifest = {"network_data_format": {"inputs": {"x": {}}}}
    assert route.modalities([package()]) == {"CT"}
    assert route.modalities([package(), silent]) == frozenset()
    assert route.modalities([]) == frozenset()
