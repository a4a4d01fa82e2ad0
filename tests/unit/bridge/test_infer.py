"""bridge.infer: a route's input is fixed once, its model runs in a child, every end is a leaf."""

from __future__ import annotations

import hashlib

import pytest
from bench import changed, every, images, tiny
from onnx import TensorProto, helper
from pydicom.uid import RLELossless

from bridge import infer
from bridge.errors import NotFound, Refused
from bridge.infer import _parameters_digest
from bridge.study import RouteState
from models import sandbox, warm

UID = str(images(1)[0].StudyInstanceUID)


@pytest.fixture
def sealed(desk):
    """A desk with one open route."""
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    return desk, route_id


def route(desk, route_id: str):
    return next(row for row in desk.rows("routes") if row.id == route_id)


def leaf_types(desk) -> list[str]:
    return [leaf["type"] for leaf in desk.leaves()]


def test_the_leaf_says_that_a_warm_process_ran_it_and_with_what(sealed):
    desk, route_id = sealed
    active = [package for _, package in desk.rooms.catalog.active()]
    sandbox.keep_warm(active, infer.LIMITS)
    try:
        desk.run(route_id)
    finally:
        warm.keep([])
        warm._kept = None
    runtime = desk.leaves()[-1]["body"]["runtime"]
    assert runtime["process"] == "warm"
    assert runtime["threads"] == 1
    assert runtime["optimisation"] == "all"
    assert runtime["version"]
    desk.verify()


def test_two_models_on_one_series_decode_it_once(desk, monkeypatch):
    desk.model()
    other = tiny.threshold_graph(above=101.0)
    desk.model({"deployment": {"identity": {"id": "test.second"}}}, model=other)
    desk.receive(*images(3))
    asked = []
    ask = sandbox._ask
    monkeypatch.setattr(
        sandbox, "_ask", lambda *args, **more: asked.append(args[0]) or ask(*args, **more)
    )
    first, second = desk.seal(UID)
    for route_id in (first, second):
        assert infer.seal(desk.rooms, route_id) == infer.SEALED
        desk.run(route_id)
    assert asked.count("seal") == 1
    assert [run.state for run in desk.rows("runs")] == ["completed"] * 2
    assert route(desk, first).input_digest == route(desk, second).input_digest
    desk.verify()


def test_a_run_is_sealed_asked_and_completed(sealed):
    desk, route_id = sealed
    run_id = desk.run(route_id)
    (run,) = desk.rows("runs")
    assert run.id == run_id == infer.run_id(route_id, 1)
    assert run.state == "completed"
    assert run.findings["measurements"][0]["value"] == pytest.approx(3 * 64 * 3.0 / 1000)
    assert leaf_types(desk)[-4:] == [
        "input.sealed", "consent.checked", "inference.started", "inference.completed",
    ]  # fmt: skip
    desk.verify()


def test_the_leaf_commits_to_how_scores_were_read(sealed):
    assert _parameters_digest({"parameters": ["p: threshold=0.5"]}) == (
        hashlib.sha256(b'["p: threshold=0.5"]').hexdigest()
    )
    desk, route_id = sealed
    desk.run(route_id)
    (ended,) = [leaf for leaf in desk.leaves() if leaf["type"] == "inference.completed"]
    (row,) = desk.rows("runs")
    assert ended["body"]["parameters"] == _parameters_digest(row.findings)


def test_each_step_can_be_repeated_to_the_same_leaves(sealed):
    desk, route_id = sealed
    for _ in range(2):
        assert infer.seal(desk.rooms, route_id) == infer.SEALED
        assert infer.permitted(desk.rooms, route_id)
        infer.run(desk.rooms, route_id, 1)
    assert len(desk.rows("runs")) == 1
    types = leaf_types(desk)
    assert len(types) == len(set(types))
    desk.verify()


def test_the_input_digest_is_kept_in_the_row_and_keyed_in_the_leaf(sealed):
    desk, route_id = sealed
    infer.seal(desk.rooms, route_id)
    digest = route(desk, route_id).input_digest
    leaf = desk.leaves()[-1]
    assert len(digest) == 64
    assert digest not in str(leaf)
    assert leaf["body"]["digest"] != bytes.fromhex(digest)
    assert leaf["body"]["counts"] == {"image": 3}
    assert leaf["body"]["evidence"]["kind"] == "quiet"


def test_pixels_that_cannot_be_decoded_are_a_failed_run(desk):
    desk.model()
    sent = images(3)
    broken = changed(sent[1])
    broken.PixelData = broken.PixelData[:100]
    desk.receive(sent[0], broken, sent[2])
    (route_id,) = desk.seal(UID)
    desk.run(route_id)
    (run,) = desk.rows("runs")
    assert run.state == "failed"
    assert run.code == "undecodable"
    assert not run.reason.startswith("undecodable")
    assert leaf_types(desk)[-1] == "inference.failed"
    desk.verify()


@pytest.mark.parametrize(("name", "code"), [("loop", "timeout"), ("nan", "not_finite")])
def test_a_models_death_is_its_runs_outcome(desk, name, code):
    if name == "loop":
        desk.model({"deployment": {"execution": {"timeout_s": 5}}}, model=endless())
    else:
        floats = {"network_data_format": {"outputs": {"mask": {"dtype": "float32"}}}}
        desk.model(floats, model=not_a_number())
    desk.receive(*images(2))
    (route_id,) = desk.seal(UID)
    desk.run(route_id)
    (run,) = desk.rows("runs")
    assert (run.state, run.code) == ("failed", code)
    assert run.reason
    desk.verify()


def endless():
    """The threshold, after a loop of a million times a million."""
    model = tiny.threshold_graph()
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    count = helper.make_tensor("n", TensorProto.INT64, [], [10**12])
    truth = helper.make_tensor("yes", TensorProto.BOOL, [], [1])
    nodes = [
        helper.make_node("Constant", [], ["n"], value=count),
        helper.make_node("Constant", [], ["yes"], value=truth),
        helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body),
    ]
    threshold = list(model.graph.node)
    threshold[1].input[0] = "y"
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *threshold])
    return model


def not_a_number():
    """A mask of probabilities that are 0/0."""
    model = tiny.threshold_graph()
    nodes = list(model.graph.node)
    cast = nodes.pop()
    nodes += [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["mask"]),
    ]
    assert cast.op_type == "Cast"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def test_the_same_input_again_carries_the_result_forward(desk):
    """A transcoded re-send plus an image that the model does not read: no second run."""
    desk.model()
    sent = images(3)
    desk.receive(*sent)
    (first,) = desk.seal(UID)
    desk.report(desk.run(first))
    packed = every(sent)
    for one in packed:
        one.compress(RLELossless, generate_instance_uid=False)
    desk.receive(*packed, *images(2, series="other", Modality="MR"))
    assert desk.study(UID).generation == 2
    (second,) = desk.seal(UID)
    assert infer.seal(desk.rooms, second) == infer.CARRIED
    assert route(desk, second).state == RouteState.CARRIED
    assert "generation 1" in route(desk, second).reason
    assert len(desk.rows("runs")) == 1
    desk.finish(UID)
    desk.verify()


def test_a_changed_identity_does_not_change_the_input(desk):
    desk.model()
    sent = images(3)
    desk.receive(*sent)
    (first,) = desk.seal(UID)
    infer.seal(desk.rooms, first)
    digest = route(desk, first).input_digest
    other = every(sent, PatientID="X", PatientName="Other", AccessionNumber="", StudyDate="")
    paths = desk.lay(*other)
    found = sandbox.seal(paths=paths, work=desk.base / "w", limits=infer.LIMITS)
    assert found.input_digest == digest


def test_a_model_that_was_retired_meanwhile_does_not_run(sealed):
    """Else the log would break trace rule R2."""
    desk, route_id = sealed
    infer.seal(desk.rooms, route_id)
    assert infer.permitted(desk.rooms, route_id)
    desk.rooms.lifecycle.act("test.threshold", "retire", desk.rooms.now(), by="boss")
    with pytest.raises(Refused, match="retired"):
        infer.run(desk.rooms, route_id, 1)
    assert "inference.started" not in leaf_types(desk)
    desk.verify()


def test_a_package_that_was_changed_on_disk_does_not_run(sealed):
    desk, route_id = sealed
    row = desk.rows("models")[0]
    desk.rooms.catalog._open.clear()
    with (desk.settings.folder / row.folder / "configs/metadata.json").open("a") as file:
        file.write(" ")
    infer.seal(desk.rooms, route_id)
    with pytest.raises(Refused, match="changed after registration"):
        infer.run(desk.rooms, route_id, 1)


def test_a_model_that_was_never_activated(desk):
    with pytest.raises(NotFound):
        desk.rooms.catalog.activated("0" * 64)
