"""A whole trial: a shadow beside the live model over many studies, its report, silence at the PACS.

RADSEAL_SOAK=full takes 208 studies. What is bright differs from study to study, so that the two
models, whose thresholds differ, agree on some and disagree on others as is worked out here.
"""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from bench import MODEL, images, tiny

from bridge import ambient, trials
from bridge.trial import READ

STUDIES = 208 if os.environ.get("RADSEAL_SOAK") == "full" else 4
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
LIVE, SHADOW = f"{MODEL}@1.2.3", f"{MODEL}@2.0.0"
# HU of the square: above both thresholds, between them (90 and 100), below both.
BRIGHT, BETWEEN, DARK = 400, 95, 0
KINDS = (BRIGHT, DARK, BETWEEN, DARK)
SEXES = ("F", "M", "F", "O")


def study(number: int):
    return images(
        3, study=f"study {number}", seed=KINDS[number % 4] - 400, PatientSex=SEXES[number % 4],
        PatientAge=f"{20 + number % 60:03d}Y", PatientBirthDate=None,
    )  # fmt: skip


def test_a_trial_over_many_studies(new_site, archive, capsys):
    pacs = archive()
    desk = new_site(pacs.toml())
    began = desk.rooms.now() - timedelta(minutes=1)
    change = {"deployment": {"results": {"secondary_capture": False}}}
    desk.model(change)
    root = desk.package({"version": "2.0.0"}, name="v2", model=tiny.threshold_graph(above=90.0))
    desk.push(root)
    for act in ("approve", "shadow"):
        desk.rooms.lifecycle.act(SHADOW, act, ambient.now(), by="approver")
    for number in range(STUDIES):
        sent = study(number)
        desk.receive(*sent)
        assert len(desk.walk(str(sent[0].StudyInstanceUID))) == 2
    report = trials.assess(desk.rooms, SHADOW, None, began, desk.rooms.now())
    told, each = report.told, STUDIES // 4
    assert told["volume"]["by_state"] == {READ: STUDIES}
    assert (told["positive"]["count"], told["positive"]["n"]) == (2 * each, STUDIES)
    agreement = told["agreement"]
    assert (agreement["both"], agreement["neither"]) == (each, 2 * each)
    assert (agreement["only_this"], agreement["only_live"]) == (each, 0)
    assert agreement["rate"] == 0.75
    if each >= 10:
        by_sex = {row["group"]: row for row in told["groups"]["sex"]}
        assert (by_sex["F"]["n"], by_sex["F"]["count"]) == (2 * each, 2 * each)
        assert (by_sex["M"]["count"], by_sex["O"]["count"]) == (0, 0)
    # Whatever the PACS received is the live model's, and the log says of no other.
    shadows = {row.id for row in desk.rows("routes") if row.mode == "shadow"}
    runs = {row.id: row.route_id for row in desk.rows("runs")}
    assert len(shadows) == STUDIES
    assert not {row.run_id for row in desk.rows("artifacts") if runs[row.run_id] in shadows}
    assert pacs.uids() == {row.sop_instance_uid for row in desk.rows("artifacts")}
    assert desk.verify().broken == 0
    with capsys.disabled():
        print(f"\n{STUDIES} studies, agreement {agreement}, positive {told['positive']}")
