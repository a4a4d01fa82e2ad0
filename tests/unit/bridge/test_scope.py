"""bridge.scope: which studies a model is put to use for, and in words why one is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge import scope
from bridge.errors import WrongUse


@dataclass
class Image:
    attributes: dict[str, Any] = field(default_factory=dict)


CT = Image({"Modality": "CT", "InstitutionalDepartmentName": "Radiology East"})
SR = Image({"Modality": "SR"})


def test_words_are_read():
    said = ["source=CT1,CT2", "modality=ct", "department=Radiology East", "source=CT1"]
    assert scope.read(said) == {
        "source": ["CT1", "CT2"], "modality": ["CT"], "department": ["Radiology East"],
    }  # fmt: skip
    assert scope.read([]) == {}


@pytest.mark.parametrize(
    "word",
    [
        "", "CT", "ward=A", "source=", "source=A\\B", "source=" + "A" * 17, "modality=C T!",
        "modality=" + "C" * 17, "department=", "department=a\nb", "department=" + "x" * 65,
        "source=CT1,,CT2", "source=" + ",".join(f"CT{n}" for n in range(51)),
    ],
)  # fmt: skip
def test_what_is_no_scope_is_wrong_use_and_says_the_key(word):
    with pytest.raises(WrongUse, match="--scope"):
        scope.read([word])


@pytest.mark.parametrize(
    "said",
    [
        {}, {"source": ["CT1"]}, {"source": ["CT2", "CT1"]}, {"modality": ["CT"]},
        {"department": ["radiology  EAST"]}, {"source": ["CT1"], "modality": ["MR", "CT"]},
    ],
)  # fmt: skip
def test_a_study_within(said):
    assert scope.outside(said, "CT1 ", [SR, CT]) is None


@pytest.mark.parametrize(
    ("said", "images", "words"),
    [
        ({"source": ["CT2"]}, [CT], "source is CT1, wanted CT2"),
        ({"modality": ["MR"]}, [CT, SR], "modality is CT and SR, wanted MR"),
        ({"modality": ["MR"]}, [Image()], "modality is unknown, wanted MR"),
        ({"department": ["ER"]}, [CT], "department is another one, wanted ER"),
        ({"department": ["ER"]}, [SR], "department is not in its images, wanted ER"),
        ({"source": ["CT1"], "modality": ["MR", "US"]}, [CT], "wanted MR or US"),
        ({"later key": ["x"]}, [CT], "later key is unknown"),
    ],
)
def test_a_study_outside_and_why(said, images, words):
    assert words in (scope.outside(said, "CT1", images) or "")


def test_free_text_of_the_images_is_never_quoted():
    named = Image({"InstitutionalDepartmentName": "Mr Canary 1950"})
    assert "Canary" not in (scope.outside({"department": ["ER"]}, "CT1", [named]) or "")


def test_a_scope_in_words():
    assert scope.words({"source": ["A", "B"], "modality": ["CT"]}) == "modality CT; source A or B"
    assert scope.words({}) == ""
