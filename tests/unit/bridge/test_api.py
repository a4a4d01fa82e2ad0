"""HTTP: one permission a route, one shape of errors, no PHI where it must not be."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from bridge.access import GRANTS, Permission, Role
from bridge.api.app import create_app
from bridge.api.doors import Requires, RequiresForm
from bridge.api.rooms import Check, LogFacts, WitnessLine
from bridge.api.wire import BODY_LIMIT
from ledger.errors import StorageFailed
from ledger.witness import SIZE_TYPE, Reply

PAGE = {"Accept": "text/html,application/xhtml+xml"}
DATA = {"Accept": "application/json"}
STATIC = Path(__file__).resolve().parents[3] / "bridge" / "web" / "static"


@pytest.fixture
def rooms(paper, tmp_path):
    return paper.PaperRooms(tmp_path)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def client(rooms, lines):
    with TestClient(create_app(rooms, lines.append), follow_redirects=False) as client:
        yield client


def bearer(rooms, role: Role) -> dict[str, str]:
    return {"Authorization": "Bearer " + rooms.access.issue_token(f"a {role}", role, rooms.time)}


def sign_in(client, rooms, role: Role = Role.OPERATOR) -> str:
    """Sign in by a link as a browser does; returns the CSRF token of the page."""
    secret = rooms.access.login_secret("the machine", role, rooms.time)
    assert client.post("/login", data={"secret": secret}).status_code == 303
    page = client.get("/studies", headers=PAGE)
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    return found.group(1) if found else ""


def permissions_of(route: APIRoute) -> list[Requires]:
    found = []
    todo = [route.dependant]
    while todo:
        one = todo.pop()
        if isinstance(one.call, Requires):
            found.append(one.call)
        todo.extend(one.dependencies)
    return found


def all_routes(app) -> list:
    found, todo = [], list(app.routes)
    while todo:
        route = todo.pop()
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if not isinstance(route, APIRoute) and hasattr(inner, "routes"):
            todo.extend(inner.routes)
        else:
            found.append(route)
    return found


def test_each_route_declares_exactly_one_permission(rooms):
    routes = all_routes(create_app(rooms, cosigner=PaperWitness()))
    assert len(routes) > 20
    for route in routes:
        assert isinstance(route, APIRoute), f"{route!r} is not a route with a permission"
        held = permissions_of(route)
        assert len(held) == 1, f"{route.path} declares {len(held)} permissions"


# The link that signs in is single-use; a log's signature authorises what a witness is sent; a
# package is taken from programs with a token only.
AUTHORISED_OTHERWISE = {"/login", "/witness/add-checkpoint", "/models"}


class PaperWitness:
    """Says what it was asked, as a cosigner would."""

    def add_checkpoint(self, body, time):  # noqa: ARG002
        if body == b"full":
            raise StorageFailed
        return Reply(409, f"{len(body)}\n", SIZE_TYPE)

    def checkpoint(self, address):
        return "cosigned\n" if address == "a" * 64 else None


def test_whatever_changes_something_asks_for_the_form_of_a_page_of_ours(rooms):
    for route in all_routes(create_app(rooms, cosigner=PaperWitness())):
        if route.methods - {"GET", "HEAD"} and route.path not in AUTHORISED_OTHERWISE:
            assert isinstance(permissions_of(route)[0], RequiresForm), route.path


def test_anonymous_reaches_only_what_the_design_opens(client, paper):
    opened = {"/health/live", "/health/ready", "/ledger/checkpoint", "/login", "/"}
    opened |= {"/ledger/checkpoint.witnessed"}
    opened |= {"/login/{secret}", "/static/{name}"}
    for route in all_routes(client.app):
        path = re.sub(r"\{(\w+)(:path)?\}", _example(paper), route.path)
        method = sorted(route.methods)[0]
        if method == "POST" and path == "/login":
            continue
        status = client.request(method, path).status_code
        assert (status != 401) == (route.path in opened), (method, route.path, status)


def _example(paper):
    values = {"uid": paper.study_uid(1), "sop": paper.SR, "secret": "rs_x", "name": "app.css"}
    values |= {"act": "retry", "level": "0", "index": "000", "digest": "0" * 64}
    return lambda found: values[found.group(1)]


def test_each_role_reaches_what_its_row_says(client, rooms, paper):
    for role in Role:
        token = bearer(rooms, role)
        for route in all_routes(client.app):
            permission = permissions_of(route)[0].permission
            if "GET" not in route.methods or route.path == "/login/{secret}":
                continue
            path = re.sub(r"\{(\w+)(:path)?\}", _example(paper), route.path)
            status = client.get(path, headers=token).status_code
            assert (status == 403) == (permission not in GRANTS[role]), (role, path, status)


@pytest.mark.parametrize("header", ["Bearer rs_wrong", "Bearer", "Basic abc", "bearer  "])
def test_a_wrong_token_is_401_with_problem_json(client, header):
    answer = client.get("/studies", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 401
    assert "rs_wrong" not in answer.text
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_signing_in_by_a_link_once(client, rooms):
    secret = rooms.access.login_secret("the machine", Role.OPERATOR, rooms.time)
    looked = client.get(f"/login/{secret}", headers=PAGE)
    assert looked.status_code == 200
    assert secret in looked.text
    first = client.post("/login", data={"secret": secret})
    cookie = first.headers["set-cookie"]
    assert first.status_code == 303
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert client.get("/studies", headers=PAGE).status_code == 200
    client.cookies.clear()
    again = client.post("/login", data={"secret": secret})
    assert again.status_code == 401
    assert "set-cookie" not in again.headers


def test_over_https_the_cookie_is_secure_and_bound_to_the_host(paper, tmp_path):
    rooms = paper.PaperRooms(tmp_path, secure=True)
    secret = rooms.access.login_secret("m", Role.OPERATOR, rooms.time)
    with TestClient(create_app(rooms), "https://site", follow_redirects=False) as client:
        answer = client.post("/login", data={"secret": secret})
        assert answer.headers["set-cookie"].startswith("__Host-radseal=")
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]
        assert client.get("/studies", headers=PAGE).status_code == 200


def test_signing_out(client, rooms):
    csrf = sign_in(client, rooms)
    assert client.post("/logout", data={"csrf": csrf}).status_code == 303
    assert client.get("/studies", headers=PAGE).status_code == 401
    assert not rooms.doors.sessions


def test_a_session_without_the_csrf_token_changes_nothing(client, rooms, paper):
    csrf = sign_in(client, rooms)
    path = f"/studies/{paper.study_uid(5)}/retry"
    assert client.post(path).status_code == 403
    assert client.post(path, data={"csrf": "0" * 64}).status_code == 403
    assert client.post(path, data={"csrf": csrf}, headers={"Sec-Fetch-Site": "cross-site"}
                       ).status_code == 403  # fmt: skip
    assert client.post(path, data={"csrf": csrf}, headers={"Origin": "https://evil.example"}
                       ).status_code == 403  # fmt: skip
    assert rooms.acts == []
    done = client.post(path, data={"csrf": csrf}, headers=PAGE)
    assert (done.status_code, done.headers["location"]) == (303, path[:-6] + "?said=retry")
    assert [(str(act), who) for act, _, who in rooms.acts] == [("retry", "the machine")]
    assert "Tried again" in client.get(done.headers["location"], headers=PAGE).text


def test_a_program_acts_by_token_and_is_told_in_json(client, rooms, paper):
    token = bearer(rooms, Role.OPERATOR)
    for act in ("complete", "retry", "cancel"):
        answer = client.post(f"/studies/{paper.study_uid(5)}/{act}", headers=token)
        assert answer.json()["words"] == "Done."
    refused = client.post(f"/studies/{paper.study_uid(1)}/retry", headers=token)
    assert (refused.status_code, refused.json()["title"]) == (409, "Conflict")
    assert client.post("/studies/9.9/retry", headers=token).status_code == 404
    assert client.post(f"/studies/{paper.study_uid(5)}/burn", headers=token).status_code == 422


def test_the_list_filters_by_address_and_pages(client, rooms):
    token = bearer(rooms, Role.RADIOLOGIST)
    page = client.get("/studies?state=failed", headers={**PAGE, **token}).text
    assert "its time limit" in page
    assert "consent refuses" not in page
    data = client.get("/studies.json?page=3", headers=token).json()
    assert (data["total"], data["page"], len(data["studies"])) == (140, 3, 40)
    assert data["counts"]["failed"] == 1
    assert rooms.asked[-1].offset == 100
    both = client.get("/studies?page=2&modality=ct", headers={**PAGE, **token}).text
    assert "/studies?modality=CT&amp;page=3" in both
    assert client.get("/studies?state=lost", headers=token).status_code == 400
    assert client.get("/studies?page=0", headers=token).status_code == 422


def test_the_twin_by_accept_and_by_address_is_the_same(client, rooms, paper):
    token = bearer(rooms, Role.RADIOLOGIST)
    for path in ("/studies", f"/studies/{paper.study_uid(1)}"):
        by_accept = client.get(path, headers={**DATA, **token})
        by_address = client.get(path + ".json", headers=token)
        assert by_accept.headers["content-type"] == "application/json"
        assert by_accept.json() == by_address.json()


def test_the_study_page_tells_times_reasons_results_and_leaves(client, rooms, paper):
    token = bearer(rooms, Role.RADIOLOGIST)
    page = client.get(f"/studies/{paper.study_uid(1)}", headers={**PAGE, **token}).text
    for words in (
        "Canary, Ophelia", "Emphysema index LAA-950", "9.4", "the source counts 96 images",
        "wants Modality MR", "leaf 20", f"/receipts/{paper.SR}.tlog-proof", "research-pacs",
        "not supported", f"artifacts/{paper.SUMMARY}.png", "AI result, not verified",
    ):  # fmt: skip
        assert words in page
    assert "Try again" not in page
    story = client.get(f"/studies/{paper.study_uid(1)}.json", headers=token).json()
    assert story["lines"][0]["index"] == 20


def test_only_an_operator_sees_buttons_and_only_those_that_fit(client, rooms, paper):
    sign_in(client, rooms)
    buttons = {
        n: client.get(f"/studies/{paper.study_uid(n)}", headers=PAGE).text for n in (0, 1, 5)
    }
    assert "Complete now" in buttons[0]
    assert "Try again" not in buttons[0]
    assert "Try again" in buttons[5]
    assert '<form method="post" action="/studies' not in buttons[1]


def test_an_auditor_sees_the_study_but_not_whose_it_is(client, rooms, paper):
    token = bearer(rooms, Role.AUDITOR)
    for path in ("/studies", "/studies.json", f"/studies/{paper.study_uid(1)}",
                 f"/studies/{paper.study_uid(1)}.json"):  # fmt: skip
        for accept in (PAGE, DATA):
            text = client.get(path, headers={**accept, **token}).text
            assert "Canary" not in text
            assert "CANARY" not in text
            assert "Thorax" not in text
    found = client.post("/studies/search", data={"text": paper.CANARY_ID}, headers=token).json()
    assert [one["study_instance_uid"] for one in found["studies"]] == [paper.study_uid(1)]
    assert "CANARY" not in json.dumps(found)


def test_a_search_leaves_no_trace(client, rooms, paper, lines, caplog):
    caplog.set_level(logging.DEBUG)
    csrf = sign_in(client, rooms)
    asked = {"csrf": csrf, "text": " ophelia "}
    page = client.post("/studies/search", data=asked, headers=PAGE)
    assert page.status_code == 200
    assert "Canary, Ophelia" in page.text
    client.get(f"/studies?state=failed&text={paper.CANARY_ID}", headers=PAGE)
    assert client.get("/studies/search").status_code == 404
    ours = [one.getMessage() for one in caplog.records if not one.name.startswith("http")]
    log = repr(lines) + repr(ours)
    assert "canary" not in log.lower()
    assert "ophelia" not in log.lower()
    assert {line.route for line in lines} >= {"/studies/search", "/studies", "/studies/{uid}"}
    assert not any("?" in line.route for line in lines)


def test_a_searched_uid_leads_to_its_page(client, rooms, paper):
    csrf = sign_in(client, rooms)
    asked = {"csrf": csrf, "text": paper.study_uid(3)}
    page = client.post("/studies/search", data=asked, headers=PAGE)
    assert (page.status_code, page.headers["location"]) == (303, f"/studies/{paper.study_uid(3)}")
    empty = client.post("/studies/search", data={"csrf": csrf}, headers=PAGE)
    assert (empty.status_code, empty.headers["location"]) == (303, "/studies")


def test_htmx_gets_fragments_and_nothing_when_nothing_changed(client, rooms, paper):
    sign_in(client, rooms)
    for path in ("/studies", f"/studies/{paper.study_uid(1)}"):
        whole = client.get(path, headers=PAGE).text
        mark = re.search(r'"seen":"([0-9a-f]{16})"', whole).group(1)
        asks = {"HX-Request": "true"}
        assert client.get(path, params={"seen": mark}, headers=asks).status_code == 204
        part = client.get(path, params={"seen": "other"}, headers=asks)
        assert part.status_code == 200
        assert "<html" not in part.text
        assert part.text in whole
    client.cookies.clear()
    gone = client.get("/studies", headers={"HX-Request": "true"})
    assert (gone.status_code, gone.headers["hx-redirect"]) == (401, "/login")


def test_the_picture_the_text_and_the_receipt(client, rooms, paper):
    token = bearer(rooms, Role.RADIOLOGIST)
    under = f"/studies/{paper.study_uid(1)}/artifacts/"
    png = client.get(f"{under}{paper.SUMMARY}.png", headers=token)
    assert png.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(png.content)).size == (512, 512)
    assert client.get(f"{under}{paper.SR}.png", headers=token).status_code == 404
    text = client.get(f"{under}{paper.SR}.txt", headers=token)
    assert "Imaging Measurement Report" in text.text
    assert client.get(f"{under}9.9.txt", headers=token).status_code == 404
    receipt = client.get(f"/receipts/{paper.SR}.tlog-proof", headers=token)
    assert receipt.text.startswith("c2sp.org/tlog-proof@v1\n")
    assert f'filename="{paper.SR}.tlog-proof"' in receipt.headers["content-disposition"]
    assert client.get(f"/receipts/{paper.SEG}.tlog-proof", headers=token).status_code == 409


@pytest.mark.parametrize(
    "path",
    ["/studies/..%2f..%2fetc%2fpasswd", "/studies/1.2;drop", "/studies/<script>", "/nowhere",
     "/studies/" + "1." * 60 + "1", "/static/..%2fpages.py", "/static/VENDORED.md",
     "/ledger/tile/0/../../keys", "/ledger/tile/0/x1/000", "/ledger/tile/99/000",
     "/ledger/tile/entries/000.p/256", "/receipts/..%2f.tlog-proof"],
)  # fmt: skip
def test_hostile_addresses_lead_nowhere(client, rooms, path):
    token = bearer(rooms, Role.ADMINISTRATOR)
    answer = client.get(path, headers=token)
    assert answer.status_code in (404, 422)
    assert "script" not in answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_was_sent_is_never_repeated(client, rooms, paper):
    csrf = sign_in(client, rooms)
    long = {"csrf": csrf, "text": paper.CANARY * 20}
    for accept in (PAGE, DATA):
        answer = client.post("/studies/search", data=long, headers=accept)
        assert answer.status_code == 422
        assert "Canary" not in answer.text


def test_names_are_escaped(client, rooms, paper):
    evil = "<script>alert(1)</script>"
    story = rooms.stories[paper.study_uid(1)]
    rooms.lines[1] = paper.replace(rooms.lines[1], patient_name=evil, source=evil)
    line = paper.replace(story.line, patient_name=evil, state_words=evil)
    rooms.stories[paper.study_uid(1)] = paper.replace(story, line=line, waiting=evil)
    token = bearer(rooms, Role.RADIOLOGIST)
    for path in ("/studies", f"/studies/{paper.study_uid(1)}"):
        page = client.get(path, headers={**PAGE, **token}).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;" in page


def test_every_answer_carries_the_security_headers(paper, tmp_path):
    rooms = paper.PaperRooms(tmp_path)
    with TestClient(create_app(rooms), raise_server_exceptions=False) as client:
        token = bearer(rooms, Role.ADMINISTRATOR)
        rooms.broken = True
        for path in (
            "/login",
            "/health/live",
            "/nowhere",
            "/studies",
            "/docs",
            "/ledger/checkpoint",
        ):
            answer = client.get(path, headers={**PAGE, **token})
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert "cache-control" in answer.headers
            assert "Canary" not in answer.text
        assert client.get("/studies", headers=token).status_code == 500


def test_no_page_holds_inline_script_or_style(client, rooms, paper):
    sign_in(client, rooms, Role.ADMINISTRATOR)
    for path in ("/studies", f"/studies/{paper.study_uid(1)}", "/docs", "/login", "/login/rs_x"):
        page = client.get(path, headers=PAGE).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", page)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|hx-on|javascript:", page)
        assert not re.search(r'(src|href)="(https?:)?//', page)


def test_bodies_are_bounded(client, rooms):
    token = bearer(rooms, Role.OPERATOR)
    big = b"x" * (BODY_LIMIT + 1)
    assert client.post("/studies/search", content=big, headers=token).status_code == 413
    chunks = (b"x" * 4096 for _ in range(BODY_LIMIT // 4096 + 1))
    assert client.post("/login", content=chunks).status_code == 413


def test_ready_names_what_is_missing_but_not_why(client, rooms):
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/health/ready").json()["checks"] == {"database": True, "ledger": True}
    rooms.checks = (*rooms.checks, Check("pacs", False, "10.0.0.6 does not answer"))
    missing = client.get("/health/ready")
    assert missing.status_code == 503
    assert missing.json()["checks"]["pacs"] is False
    assert "10.0.0.6" not in missing.text


def test_the_log_as_static_files(paper, tmp_path):
    rooms = paper.PaperRooms(tmp_path, public="tiles")
    rooms.log_files |= {"tile/0/x001/234.p/7": b"t", "tile/entries/000": b"e"}
    with TestClient(create_app(rooms)) as client:
        assert client.get("/ledger/checkpoint").headers["content-type"].startswith("text/plain")
        tile = client.get("/ledger/tile/0/x001/234.p/7")
        assert (tile.content, tile.headers["content-type"]) == (b"t", "application/octet-stream")
        assert "immutable" in tile.headers["cache-control"]
        assert client.get("/ledger/tile/1/000").status_code == 404
        assert client.get("/ledger/tile/entries/000").status_code == 401
        auditor = bearer(rooms, Role.AUDITOR)
        assert client.get("/ledger/tile/entries/000", headers=auditor).content == b"e"


def test_the_access_log_names_routes_and_roles(client, rooms, lines, paper):
    client.get(f"/studies/{paper.study_uid(1)}?said=x", headers=bearer(rooms, Role.RADIOLOGIST))
    client.get("/nowhere/at/all")
    rooms.access.sign_in(rooms.access.issue_token("Pat Name", Role.PATIENT, rooms.time), rooms.time)
    client.get("/", headers=bearer(rooms, Role.PATIENT))
    first, second, third = lines
    assert (first.method, first.route, first.status) == ("GET", "/studies/{uid}", 200)
    assert (first.role, first.who) == ("radiologist", "a radiologist")
    assert (second.route, second.status, second.role) == ("(no route)", 404, "anonymous")
    assert (third.role, third.who) == ("patient", "")


def test_documents_and_metrics_by_role(client, rooms):
    token = bearer(rooms, Role.OPERATOR)
    assert client.get("/metrics", headers=token).text == "radseal_up 1\n"
    paths = client.get("/openapi.json", headers=token).json()["paths"]
    assert "/studies/{uid}" in paths
    assert "Interfaces" in client.get("/docs", headers={**PAGE, **token}).text
    assert Permission.DOCS_READ not in GRANTS[Role.PATIENT]


def test_vendored_files_are_what_the_list_says():
    table = (STATIC / "VENDORED.md").read_text()
    for name, digest in re.findall(r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", table, re.M):
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest
    assert table.count(".min.js |") == len(list(STATIC.glob("*.min.js")))


def test_a_house_that_is_no_witness_has_no_such_routes(client):
    assert client.post("/witness/add-checkpoint", content=b"x").status_code == 404
    assert client.get(f"/witness/{'a' * 64}/checkpoint").status_code == 404


def test_a_witness_answers_anybody_in_the_words_of_the_protocol(rooms):
    with TestClient(create_app(rooms, cosigner=PaperWitness())) as client:
        for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
            answer = client.post(
                "/witness/add-checkpoint", content=b"old 1\n", headers={"Content-Type": kind}
            )
            assert (answer.status_code, answer.text) == (409, "6\n")
            assert answer.headers["content-type"] == "text/x.tlog.size"
        failed = client.post("/witness/add-checkpoint", content=b"full")
        assert (failed.status_code, failed.text) == (
            503, "the witness cannot answer now, try again\n",
        )  # fmt: skip
        too_long = client.post("/witness/add-checkpoint", content=b"x" * (BODY_LIMIT + 1))
        assert too_long.status_code == 413
        shown = client.get(f"/witness/{'a' * 64}/checkpoint")
        assert (shown.status_code, shown.text) == (200, "cosigned\n")
        assert shown.headers["content-type"] == "text/plain; charset=utf-8"
        assert client.get(f"/witness/{'b' * 64}/checkpoint").status_code == 404
        assert client.get("/witness/add-checkpoint").status_code in (404, 405)


def test_the_ledgers_page_and_its_twin(client, rooms):
    rooms.log_facts = LogFacts(
        12, 9, (WitnessLine("north", "ok", True, "cosigned"),
                WitnessLine("south", "split", False, "another <history>")),
    )  # fmt: skip
    auditor = bearer(rooms, Role.AUDITOR)
    page = client.get("/ledger", headers={**auditor, **PAGE})
    assert page.status_code == 200
    assert "another &lt;history&gt;" in page.text
    assert "<strong>split</strong>" in page.text
    twin = client.get("/ledger.json", headers=auditor).json()
    assert (twin["size"], twin["witnessed"]) == (12, 9)
    assert [one["name"] for one in twin["witnesses"]] == ["north", "south"]
    rooms.log_facts = LogFacts(12, 0)
    assert "No witness is asked" in client.get("/ledger", headers={**auditor, **PAGE}).text


def test_an_alarm_of_a_witness_is_seen_and_is_no_reason_to_be_not_ready(client, rooms):
    assert "witnesses" not in client.get("/health/ready").json()
    rooms.log_facts = LogFacts(2, 1, (WitnessLine("north", "ok", True, "w"),))
    assert client.get("/health/ready").json()["witnesses"] == "ok"
    rooms.log_facts = LogFacts(2, 1, (WitnessLine("north", "split", False, "w"),))
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["witnesses"]) == (200, "alarm")
    assert "north" not in answer.text
