"""A shadow sees live studies and nobody hears of it; the live one beside it delivers as before."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest
from bench import MODEL, images, refuse, tiny

from bridge import ambient, compose, deliver
from bridge.study import StudyState as S

UID = str(images(1)[0].StudyInstanceUID)
NO_PICTURE = {"results": {"secondary_capture": False}}
LIVE, SHADOW = f"{MODEL}@1.2.3", f"{MODEL}@2.0.0"


def act(desk, what, name, **more):
    return desk.rooms.lifecycle.act(name, what, ambient.now(), by="approver", **more)


def shadow(desk, **more):
    """Put version 2 to use as a shadow."""
    change = {"version": "2.0.0", "deployment": NO_PICTURE}
    root = desk.package(change, name="v2", model=tiny.threshold_graph(above=90.0))
    desk.push(root)
    act(desk, "approve", SHADOW)
    return act(desk, "shadow", SHADOW, **more)


def of_version(desk, version):
    """The route and the run of a version."""
    (route,) = [one for one in desk.rows("routes") if one.model_version == version]
    return route, next((one for one in desk.rows("runs") if one.route_id == route.id), None)


class Ear:
    """A destination that hangs up on whoever calls, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                return
            self.calls += 1
            caller.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


@pytest.fixture
def ear():
    with closing(Ear()) as made:
        yield made


def heard(ear: Ear) -> bool:
    """Whether anybody called; what was called before is counted by now."""
    before = ear.calls
    socket.create_connection(("127.0.0.1", ear.port)).recv(1)  # accepted in order, then hung up
    return before > 0 or ear.calls > 1


def to(ear) -> str:
    return (
        '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\n'
        f"port = {ear.port}\npartial = true\n"
    )


def test_no_destination_hears_of_a_shadow(new_site, ear):
    desk = new_site(to(ear))
    shadow(desk)
    desk.receive(*images(3))
    (run_id,) = desk.walk(UID)
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE  # nor when it is asked to
    assert not heard(ear)
    assert desk.rows("deliveries") == desk.rows("artifacts") == []
    (run,) = desk.rows("runs")
    assert run.state == "completed"
    assert run.findings["segments"]  # what its report compares
    kinds = [leaf["type"] for leaf in desk.leaves()]
    assert "inference.completed" in kinds
    assert "consent.checked" in kinds
    assert not {"result.composed", "delivery.started"} & set(kinds)
    desk.verify()


def test_the_ear_hears(new_site, ear):
    """Else the tests with it could not fail: the same walk with a live model calls there."""
    desk = new_site(to(ear))
    desk.model({"deployment": NO_PICTURE})
    desk.receive(*images(3))
    desk.walk(UID)
    assert heard(ear)


def test_a_failed_run_of_a_shadow_sends_no_partial_report(new_site, ear):
    desk = new_site(to(ear))
    shadow(desk)
    desk.receive(*images(3, PixelData=b"xx"))
    desk.walk(UID)
    assert not heard(ear)
    assert desk.rows("artifacts") == []
    (told,) = desk.story(UID).routes
    assert told.state == "failed"
    assert "shadow: not delivered" in told.reason
    assert desk.study(UID).state is S.UNWANTED


def test_the_live_model_beside_it_delivers_as_before(new_site, archive, radseal):
    pacs = archive()
    desk = new_site(pacs.toml())
    desk.model({"deployment": NO_PICTURE})
    shadow(desk)
    desk.receive(*images(3))
    desk.seal(UID)
    live, silent = of_version(desk, "1.2.3")[0], of_version(desk, "2.0.0")[0]
    assert (live.mode, silent.mode) == ("active", "shadow")
    run_id = desk.run(live.id)
    assert desk.report(run_id) == ["pacs"]
    assert desk.report(desk.run(silent.id)) == []
    # The shadow ended before anything was sent: it took no place of the live one's results.
    assert {(one.run_id, one.state) for one in desk.rows("deliveries")} == {(run_id, "waiting")}
    deliver.send(desk.rooms, run_id, "pacs", 0)
    desk.finish(UID)
    assert {(one.run_id, one.state) for one in desk.rows("deliveries")} == {(run_id, "stored")}
    assert {(one.run_id, one.revision) for one in desk.rows("artifacts")} == {(run_id, 1)}
    assert pacs.uids() == {one.sop_instance_uid for one in desk.rows("artifacts")}
    assert desk.study(UID).state is S.DELIVERED
    said = {one.version: one.reason for one in desk.story(UID).routes}
    assert said == {"1.2.3": "", "2.0.0": "shadow: not delivered"}
    desk.verify()
    assert "shadow: not delivered" in radseal("why", UID).out


def test_consent_is_asked_for_a_shadow_too(desk):
    shadow(desk)
    refuse(desk)
    desk.receive(*images(3))
    assert desk.walk(UID) == []
    assert of_version(desk, "2.0.0")[0].state == "denied"
    desk.verify()


def test_a_live_model_that_became_a_shadow_delivers_no_more(new_site, ear):
    """Also what was routed to it while it was live."""
    desk = new_site(to(ear))
    desk.model({"deployment": NO_PICTURE})
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    act(desk, "shadow", LIVE)
    run_id = desk.run(route_id)
    assert desk.report(run_id) == []
    assert of_version(desk, "1.2.3")[0].mode == "shadow"
    assert not heard(ear)
    desk.verify()


def test_what_was_routed_to_a_shadow_stays_one_when_it_goes_live(new_site, ear):
    desk = new_site(to(ear))
    shadow(desk)
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    act(desk, "activate", SHADOW)
    run_id = desk.run(route_id)
    compose.compose(desk.rooms, run_id)
    assert desk.report(run_id) == []
    assert desk.rows("artifacts") == []
    desk.verify()


def test_what_a_shadow_read_is_read_again_by_the_live_one(desk):
    """A carried result is one that was delivered; a shadow's never was."""
    shadow(desk)
    desk.receive(*images(3))
    desk.walk(UID)
    act(desk, "activate", SHADOW)
    desk.receive(*images(1, series="another", Modality="SR"))
    (run_id,) = desk.walk(UID)
    assert {one.run_id for one in desk.rows("artifacts")} == {run_id}


# Scope.


def test_a_study_out_of_scope_is_not_routed_and_why_says_so(new_site, radseal):
    desk = new_site()
    desk.model({"deployment": NO_PICTURE})
    act(desk, "shadow", LIVE)
    act(desk, "activate", LIVE, scope={"source": ["MR7"], "modality": ["CT"]})
    desk.receive(*images(3), ae="CT1")
    assert desk.walk(UID) == []
    assert desk.study(UID).state is S.UNWANTED
    desk.leaves()
    assert "out of the model's scope: source is CT1, wanted MR7" in radseal("why", UID).out


def test_a_study_within_its_scope_by_department(desk):
    shadow(desk, scope={"department": ["Radiology East"]})
    desk.receive(*images(3, InstitutionalDepartmentName="Radiology East"))
    other = images(3, study="elsewhere", InstitutionalDepartmentName="Ward 3")
    desk.receive(*other)
    assert len(desk.seal(UID)) == 1
    assert desk.seal(str(other[0].StudyInstanceUID)) == []
