"""One person's morning in a real browser: sign in, look, search, act, sign out."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from bridge.access import Role
from bridge.api.app import create_app
from bridge.study import StudyState

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def rooms(paper, tmp_path):
    return paper.PaperRooms(tmp_path)


@pytest.fixture
def address(rooms):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        create_app(rooms), "127.0.0.1", port, log_level="critical", access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(5)


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(
        base_url=address, timezone_id="Europe/Vienna", viewport={"width": 1320, "height": 900}
    )
    page = context.new_page()
    page.foreign, page.faults = [], []
    page.on("request", lambda r: r.url.startswith(address) or page.foreign.append(r.url))
    page.on("console", lambda m: m.type == "error" and page.faults.append(m.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    assert page.foreign == []
    assert page.faults == []


def shot(page, name: str) -> None:
    """Keep a picture where RADSEAL_SHOTS names a folder."""
    folder = os.environ.get("RADSEAL_SHOTS")
    if folder:
        page.wait_for_load_state("networkidle")
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def enter(page, rooms, role: Role = Role.OPERATOR) -> None:
    page.goto("/login/" + rooms.access.login_secret("the machine", role, rooms.time))
    shot(page, "login")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/studies")


def test_a_morning(page, rooms, paper):
    enter(page, rooms)
    expect = playwright.expect
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    shot(page, "list")
    page.get_by_role("link", name=re.compile("failed")).click()
    expect(rows).to_have_count(1)
    assert page.url.endswith("?state=failed")

    page.get_by_role("searchbox").fill("ophelia")
    page.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(1)
    assert "ophelia" not in page.url.lower()
    shot(page, "found")
    rows.first.locator("td").nth(3).click()
    page.wait_for_url(f"**/studies/{paper.study_uid(1)}")

    expect(page.locator(".values")).to_contain_text("9.4")
    expect(page.locator(".shot img")).to_have_js_property("naturalWidth", 512)
    expect(page.locator(".timeline time").first).to_have_text(re.compile(r"10:53:00$"))
    page.get_by_text("Report as text").click()
    expect(page.locator("pre")).to_contain_text("Imaging Measurement Report")
    shot(page, "study")
    with page.expect_download() as download:
        page.get_by_role("link", name="Receipt").first.click()
    assert download.value.suggested_filename == f"{paper.SR}.tlog-proof"


def test_the_page_follows_the_study_and_keeps_what_is_open(page, rooms, paper):
    uid = paper.study_uid(2)
    enter(page, rooms)
    page.goto(f"/studies/{uid}")
    expect = playwright.expect
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.get_by_text("Report as text").click()
    expect(page.locator("pre")).to_contain_text("Imaging Measurement Report")

    story = rooms.stories[uid]
    line = replace(story.line, state=StudyState.DELIVERED, state_words="all stored at pacs")
    rooms.stories[uid] = replace(story, line=line)
    expect(page.locator(".verdict")).to_contain_text("all stored at pacs", timeout=6000)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(page.locator("details")).to_have_attribute("open", "")
    expect(page.locator("pre")).to_contain_text("Imaging Measurement Report")


def test_a_failed_study_is_tried_again(page, rooms, paper):
    enter(page, rooms)
    page.goto(f"/studies/{paper.study_uid(6)}")
    shot(page, "attention")
    page.get_by_role("button", name="Try again").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("Tried again")
    assert [str(act) for act, _, _ in rooms.acts] == ["retry"]
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    playwright.expect(page.get_by_label("Token")).to_be_visible()


def test_an_auditor_in_the_dark_on_a_small_screen(browser, address, rooms, paper):
    context = browser.new_context(
        base_url=address, color_scheme="dark", viewport={"width": 420, "height": 860}
    )
    page = context.new_page()
    enter(page, rooms, Role.AUDITOR)
    shot(page, "dark-list")
    page.goto(f"/studies/{paper.study_uid(1)}")
    playwright.expect(page.locator("h1")).to_have_text("hidden from your role")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    shot(page, "dark-study")
