"""radseal erase: what two people type, read and get back (design §6); and who holds which turn."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, consent, images

from bridge import grant
from bridge.consent.document import parse
from bridge.turns import Busy, Turns

UID = str(images(1)[0].StudyInstanceUID)
WHO = "GH|A-1\n"


@pytest.fixture
def known(desk: Bench) -> Bench:
    """A site that keeps consent and three images of Anna."""
    data = consent("permit")
    grant.keep(desk.rooms, data, parse(data), None, by="clerk")
    desk.receive(*images(3))
    return desk


@pytest.mark.usefixtures("known")
def test_two_people_and_two_lines(radseal: Callable[..., Any]) -> None:
    out, err = radseal("erase", "-", "--by", "dr-a", said=WHO)
    request = out.strip()
    assert out == f"{request}\n"  # so that a script can take it
    assert "1 studies, 3 images, 0 results, 1 consent documents" in err
    assert f"radseal erase --confirm {request}" in err
    for name in ("A-1", "Anna", UID):
        assert name not in out + err
    _, err = radseal("erase", "--confirm", request, "--by", "dr-a", code=1)
    assert "a second one" in err
    out, _ = radseal("erase", "--list")
    assert (request in out, "requested" in out) == (True, True)
    out, _ = radseal("erase", "--confirm", request, "--by", "dr-b", "--json")
    told = json.loads(out)
    assert (told["state"], told["report"]["images"], bool(told["leaf"])) == ("done", 3, True)
    out, _ = radseal("erase", "--confirm", request, "--by", "dr-b")
    assert "done" in out
    assert "flash" in out
    (listed,) = json.loads(radseal("erase", "--list", "--json")[0])
    assert (listed["state"], listed["requested_by"], listed["confirmed_by"]) == (
        "done", "dr-a", "dr-b",
    )  # fmt: skip
    radseal("why", UID, code=1)


@pytest.mark.usefixtures("known")
def test_the_request_is_json_where_asked_and_can_be_withdrawn(radseal: Callable[..., Any]) -> None:
    told = json.loads(radseal("erase", "-", "--by", "dr-a", "--json", said=WHO)[0])
    assert (told["studies"], told["left"], told["shared_studies"]) == (1, [], [])
    _, err = radseal("erase", "-", "--by", "dr-c", said=WHO, code=1)
    assert told["request"] in err
    radseal("erase", "--withdraw", told["request"])
    radseal("erase", "--withdraw", told["request"], code=1)
    radseal("erase", "--confirm", told["request"], "--by", "dr-b", code=1)
    radseal("why", UID)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ""),
        (("GH|A-1", "--by", "dr-a"), ""),  # in everybody's process list
        (("-",), WHO),
        (("-", "--by", "dr-a"), ""),
        (("-", "--by", "dr-a", "--list"), WHO),
        (("-", "--by", "dr-a", "--basis", "she wants it"), WHO),
        (("--confirm", "x"), ""),
        (("-", "--study", "--by", "dr-a"), WHO),
    ],
)
def test_wrong_use_is_a_sentence(
    radseal: Callable[..., Any], words: tuple[str, ...], said: str
) -> None:
    out, err = radseal("erase", *words, said=said, code=2)
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "A-1" not in err


@pytest.mark.usefixtures("known")
def test_a_stranger_and_an_unknown_request_are_no(radseal: Callable[..., Any]) -> None:
    _, err = radseal("erase", "-", "--by", "dr-a", said="GH|Z-9\n", code=1)
    assert "Z-9" not in err
    radseal("erase", "--confirm", "nothing", "--by", "dr-b", code=1)


# --- turns -----------------------------------------------------------------------------------


def test_many_share_a_study_and_one_has_it_alone(tmp_path: Path) -> None:
    turns, other = Turns(tmp_path / "locks"), Turns(tmp_path / "locks")
    with turns.share("aa1"), other.share("aa2"):
        with pytest.raises(Busy), turns.alone(["aa1"], time.monotonic()):
            pass
        with turns.alone(["bb1"], time.monotonic()):
            pass
    with (
        turns.alone(["aa1", "aa2", "bb1"], time.monotonic()),
        pytest.raises(Busy),
        other.alone(["bb2"], time.monotonic()),
    ):
        pass


def test_a_step_waits_for_the_erasure_and_goes_on(tmp_path: Path) -> None:
    turns, order = Turns(tmp_path / "locks"), []
    with turns.alone(["aa"], time.monotonic()):
        step = threading.Thread(target=lambda: _note(turns, order))
        step.start()
        step.join(0.2)
        order.append("erased")
    step.join(10)
    assert order == ["erased", "step"]


def _note(turns: Turns, order: list[str]) -> None:
    with turns.share("aa"):
        order.append("step")


def test_one_indexes_and_one_erases_at_a_time(tmp_path: Path) -> None:
    turns = Turns(tmp_path / "locks")
    for turn in (turns.indexing, turns.erasing):
        with turn(time.monotonic() + 5), pytest.raises(Busy), turn(time.monotonic()):
            pass
    assert len(list((tmp_path / "locks").iterdir())) == 2
