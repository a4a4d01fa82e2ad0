"""bridge.trial, bridge.trials: the numbers of a shadow trial, of known counts and of real rows."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from bench import BERT, images
from scipy.stats import binomtest

from bridge import trials
from bridge.errors import NotFound, Refused, WrongUse
from bridge.trial import LEAST, READ, Model, Reading, age_band, is_positive, measured, trial
from models.findings import ABSENT, PRESENT, Code, Findings, Measurement, Qualitative, Segment

SINCE = datetime(2026, 11, 1, tzinfo=UTC)
UNTIL = SINCE + timedelta(days=10)
NEW, LIVE = Model("a.b", "2", "2" * 64), Model("a.b", "1", "1" * 64)
FINDING = Code("1", "99X", "Nodule")


def readings(*said: bool | None, **more) -> list[Reading]:
    return [
        Reading(f"study {n}", READ, SINCE, positive=one, seconds=n + 1.0, **more)
        for n, one in enumerate(said)
    ]


def judged(mine, theirs=(), against=LIVE):
    return trial(NEW, against, mine, theirs, since=SINCE, until=UNTIL)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (200, 200), (3, 977)])
def test_the_interval_is_wilsons(count, n):
    told = judged(readings(*[True] * count, *[False] * (n - count)))["positive"]
    right = binomtest(count, n).proportion_ci(0.95, "wilson")
    assert told["rate"] == round(count / n, 4)
    assert (told["low"], told["high"]) == pytest.approx((right.low, right.high), abs=1e-4)
    assert told["per_day"] == round(count / 10, 2)


def test_agreement_and_kappa_of_a_table_worked_by_hand():
    """Both 20, only this 5, only live 10, neither 15: Cohen 1960's own example."""
    mine = readings(*[True] * 25, *[False] * 25)
    theirs = readings(*[True] * 20, *[False] * 5, *[True] * 10, *[False] * 15)
    told = judged(mine, theirs)["agreement"]
    assert (told["both"], told["only_this"], told["only_live"], told["neither"]) == (20, 5, 10, 15)
    assert (told["pairs"], told["rate"], told["kappa"]) == (50, 0.7, 0.4)


def test_what_only_one_of_them_read_is_no_pair():
    mine, theirs = readings(True, False, None), readings(True)
    failed = [Reading("study 1", "failed", SINCE, "timeout", positive=None)]
    assert judged(mine, [*theirs, *failed])["agreement"]["pairs"] == 1
    assert judged(mine, theirs, None)["agreement"] is None
    assert judged(readings(False), readings(False))["agreement"]["kappa"] is None


def test_failures_and_the_waiting_are_counted_and_not_judged():
    others = [Reading("x", "failed", SINCE, "timeout"), Reading("y", "failed", SINCE, "memory"),
              Reading("z", "denied", SINCE)]  # fmt: skip
    told = judged([*readings(True, False), *others])
    assert told["volume"]["by_state"] == {READ: 2, "failed": 2, "denied": 1}
    assert told["volume"]["failures"] == {"timeout": 1, "memory": 1}
    assert told["positive"]["n"] == 2


def test_seconds():
    told = judged(readings(*[None] * 100))["seconds"]
    assert told["of the run"] == {"n": 100, "p50": 51.0, "p95": 96.0, "most": 100.0}
    assert told["from complete input to finding"] == {"n": 0}


def test_measurements_are_compared_by_what_they_measure():
    mine = readings(None, None, measures={"Volume, Lung [mL]": 110.0, "Mean [HU]": 1.0})
    theirs = readings(None, None, measures={"Volume, Lung [mL]": 100.0})
    (row,) = judged(mine, theirs)["measurements"]
    assert row == {
        "what": "Volume, Lung [mL]", "pairs": 2, "mean_difference": 10.0, "low": 10.0, "high": 10.0,
    }  # fmt: skip


def groups(**sizes: int):
    said = [
        Reading(f"{name}{n}", READ, SINCE, positive=n % 2 == 0, groups={"sex": name})
        for name, size in sizes.items()
        for n in range(size)
    ]
    return {row["group"]: row for row in judged(said)["groups"]["sex"]}


def test_small_groups_are_not_shown():
    told = groups(F=50, M=LEAST, O=6, unknown=4)
    assert told["F"]["n"] == 50
    assert told["M"]["n"] == LEAST
    assert told["O"] == {"group": "O", "few": True}
    assert told["unknown"] == {"group": "unknown", "few": True}


def test_one_small_group_is_not_what_the_total_lacks():
    """Were O alone hidden, the total minus the others would be O's number."""
    told = groups(F=50, M=20, O=3)
    assert [name for name, row in told.items() if "few" in row] == ["M", "O"]


def test_several_small_groups_are_no_small_group_together():
    """The total minus F and M would be of O and unknown: two readings, perhaps both positive."""
    told = groups(F=50, M=20, O=1, unknown=1)
    assert [name for name, row in told.items() if "few" in row] == ["M", "O", "unknown"]
    assert "few" not in told["F"]
    assert [row for row in groups(F=50, M=20).values() if "few" in row] == []


@pytest.mark.parametrize(
    ("years", "band"),
    [(None, "unknown"), (0.1, "0-17"), (17.9, "0-17"), (18, "18-39"), (64, "40-64"),
     (79.9, "65-79"), (80, "80 and over"), (101, "80 and over")],
)  # fmt: skip
def test_age_bands(years, band):
    assert age_band(years) == band


def findings(kind="classification", **more) -> Findings:
    return Findings(kind, "said", (), **more)


def test_what_is_positive():
    yes, no = Qualitative(FINDING, PRESENT), Qualitative(FINDING, ABSENT)
    lung = Segment(1, 1, "Lung", FINDING, FINDING, 7, (0, 0, 0))
    assert is_positive(findings(qualitative=(no, yes))) is True
    assert is_positive(findings(qualitative=(no, no))) is False
    assert is_positive(findings("segmentation", segments=(lung,))) is True
    assert is_positive(findings("segmentation", nothing_found=True)) is False
    assert is_positive(findings("measurement")) is None
    one = Measurement(Code("1", "SCT", "Volume"), 5.0, Code("mL", "UCUM", "millilitre"), 1)
    assert measured(findings(segments=(lung,), measurements=(one,))) == {"Volume, Lung [mL]": 5.0}


# The site's rows.


@pytest.fixture
def trialled(desk):
    """Two studies read by the live version and by a second model beside it."""
    live = desk.model()
    desk.model({"version": "2.0.0", "deployment": {"identity": {"id": "test.second"}}},
               name="second", model=desk_model())  # fmt: skip
    desk.receive(*images(4), *images(4, study="other", patient=BERT))
    for study in ("study", "other"):
        desk.walk(str(images(1, study=study)[0].StudyInstanceUID))
    return desk, live


def desk_model():
    """Another graph of the same behaviour: a model is known by its digest."""
    from bench import tiny

    graph = tiny.threshold_graph()
    graph.producer_version = "2"
    return graph


def test_the_report_its_files_and_its_leaf(trialled, radseal, tmp_path):
    desk, live = trialled
    desk.close()
    out = tmp_path / "trial.html"
    said = radseal("model", "trial", "test.second", "--against", live.id, "-o", out, "--by", "dr-a")
    desk.reopen(desk.settings.folder)
    data = out.with_suffix(".json").read_bytes()
    told = json.loads(data)
    assert told["volume"]["by_state"] == {READ: 2}
    assert told["agreement"]["both"] == 2
    assert (told["agreement"]["rate"], told["agreement"]["kappa"]) == (1.0, None)
    assert {row["mean_difference"] for row in told["measurements"]} == {0.0}
    digest = hashlib.sha256(data).hexdigest()
    assert digest in said.out
    (leaf,) = [one for one in desk.leaves() if one["type"] == "model.assessed"]
    assert leaf["body"]["report"] == digest
    assert leaf["body"]["against"] == live.digest
    assert leaf["body"]["by"] == "dr-a"
    page = out.read_text()
    assert "too few to be shown" in page
    for text in (page, data.decode()):
        assert not re.search(r"Alpha|Beta|A-1|B-2|ACC-1", text)
        assert not any(uid in text for uid in map(str, (images(1)[0].StudyInstanceUID,)))


def test_what_cannot_be_reported(trialled):
    desk, live = trialled
    now = desk.rooms.now() + timedelta(minutes=1)
    with pytest.raises(NotFound):
        trials.assess(desk.rooms, "no.such", None, SINCE, now)
    with pytest.raises(NotFound):
        trials.assess(desk.rooms, live.id, "no.such", SINCE, now)
    with pytest.raises(Refused, match="no study"):
        trials.assess(desk.rooms, live.id, None, SINCE, SINCE + timedelta(days=1))
    with pytest.raises(WrongUse):
        trials.assess(desk.rooms, live.id, None, now, now)
    report = trials.assess(desk.rooms, live.id, None, SINCE, now)
    assert report.against is None
    assert trials.say(desk.rooms, report, "a") == trials.say(desk.rooms, report, "a")
    with pytest.raises(WrongUse, match="--by"):
        trials.say(desk.rooms, report, "a\nb")
    (row,) = [row for row in desk.rows("models") if row.digest == live.digest]
    assert [act["act"] for act in row.acts].count("assessed") == 1


def test_a_site_may_want_a_report_before_a_model_goes_live(new_site):
    desk = new_site("[models]\ntrial = true\n")
    row = desk.push(desk.package())

    def act(what):
        return desk.rooms.lifecycle.act(row.digest, what, desk.rooms.now(), by="approver")

    act("approve")
    with pytest.raises(Refused, match="shadow trial first"):
        act("activate")
    act("shadow")
    desk.receive(*images(4))
    desk.walk(str(images(1)[0].StudyInstanceUID))
    now = desk.rooms.now() + timedelta(minutes=1)
    report = trials.assess(desk.rooms, row.id, None, SINCE, now)
    assert report.told["volume"]["by_state"] == {READ: 1}
    with pytest.raises(Refused, match="shadow trial first"):
        act("activate")
    trials.say(desk.rooms, report, "approver")
    act("activate")
    (leaf,) = [one for one in desk.leaves() if one["type"] == "model.activated"
               and one["body"]["mode"] == "active"]  # fmt: skip
    assert leaf["body"]["report"] == report.digest
    act("shadow")
    with pytest.raises(Refused, match="shadow trial first"):
        act("activate")  # the report was on an earlier time
