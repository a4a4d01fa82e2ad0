"""Doors: one table of roles, secrets only as digests, links used once, sessions that end."""

from __future__ import annotations

import threading
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pytest

from bridge.access import (
    GRANTS,
    LOGIN_LIFE,
    SESSION_IDLE,
    SESSION_LIFE,
    Access,
    AccessError,
    Permission,
    Principal,
    Role,
    anonymous,
    csrf_matches,
    digest_of,
)

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def doors(paper):
    return paper.PaperDoors()


@pytest.fixture
def access(doors, paper):
    return Access(doors, paper.Counting())


def test_every_role_stands_in_the_table_and_holds_what_everybody_holds():
    assert set(GRANTS) == set(Role)
    for grants in GRANTS.values():
        assert anonymous("checkpoint").grants <= grants
        assert Permission.SIGN_OUT in grants


def test_who_may_do_what_that_matters():
    may = {p: {r for r, grants in GRANTS.items() if p in grants} for p in Permission}
    assert may[Permission.STUDIES_OPERATE] == {Role.ADMINISTRATOR, Role.OPERATOR}
    assert may[Permission.IDENTITY_READ] == {Role.ADMINISTRATOR, Role.OPERATOR, Role.RADIOLOGIST}
    assert may[Permission.METRICS_READ] == {Role.ADMINISTRATOR, Role.OPERATOR}
    assert may[Permission.ENTRIES_READ] == {Role.ADMINISTRATOR, Role.AUDITOR}
    assert Role.PATIENT not in may[Permission.STUDIES_READ]
    assert Role.VENDOR not in may[Permission.STUDIES_READ]


@pytest.mark.parametrize(
    ("public", "opened"),
    [
        ("checkpoint", set()),
        ("tiles", {Permission.TILES_READ}),
        ("entries", {Permission.TILES_READ, Permission.ENTRIES_READ}),
    ],
)
def test_what_an_anonymous_reader_may_fetch(public, opened):
    always = {
        Permission.HEALTH,
        Permission.SIGN_IN,
        Permission.CHECKPOINT_READ,
        Permission.WITNESS_SUBMIT,  # the routes of these two exist only where a witness does
        Permission.WITNESS_READ,
    }
    assert anonymous(public).grants == always | opened


def test_a_token_is_stored_only_as_its_digest(access, doors):
    secret = access.issue_token("pacs monitor", Role.OPERATOR, NOW)
    assert secret.startswith("rs_")
    assert len(secret) == 46
    assert list(doors.tokens) == [digest_of(secret)]
    assert secret not in repr([asdict(row) for row in doors.tokens.values()])
    who = access.by_token(secret, NOW)
    assert (who.name, who.role, who.via) == ("pacs monitor", Role.OPERATOR, "token")


def test_a_token_ends_when_it_expires_or_is_revoked(access, doors, paper):
    secret = access.issue_token("short", Role.AUDITOR, NOW, NOW + SECOND)
    assert access.by_token(secret, NOW).role is Role.AUDITOR
    with pytest.raises(AccessError):
        access.by_token(secret, NOW + SECOND)
    row = doors.tokens[digest_of(secret)]
    doors.tokens[row.digest] = paper.replace(row, revoked_at=NOW)
    with pytest.raises(AccessError):
        access.by_token(secret, NOW)


@pytest.mark.parametrize("wrong", ["", "rs_", "rs_" + "A" * 43, "x" * 46, "rs_\ud800" + "A" * 42])
def test_an_unknown_token_is_refused_without_being_repeated(access, wrong):
    with pytest.raises(AccessError) as refused:
        access.by_token(wrong, NOW)
    assert len(wrong) < 4 or wrong not in str(refused.value)


def test_a_link_signs_in_once(access):
    secret = access.login_secret("machine", Role.ADMINISTRATOR, NOW)
    opened = access.sign_in(secret, NOW + LOGIN_LIFE - SECOND)
    assert opened.principal.role is Role.ADMINISTRATOR
    assert opened.secret != secret
    with pytest.raises(AccessError):
        access.sign_in(secret, NOW)


def test_a_link_is_good_for_five_minutes(access):
    secret = access.login_secret("machine", Role.ADMINISTRATOR, NOW)
    with pytest.raises(AccessError):
        access.sign_in(secret, NOW + LOGIN_LIFE)


def test_a_link_is_no_token_and_a_session_is_no_token(access):
    link = access.login_secret("machine", Role.ADMINISTRATOR, NOW)
    with pytest.raises(AccessError):
        access.by_token(link, NOW)
    opened = access.sign_in(link, NOW)
    with pytest.raises(AccessError):
        access.by_token(opened.secret, NOW)


def test_a_session_ends_after_an_idle_hour_or_twelve_hours(access, doors):
    opened = access.sign_in(access.login_secret("m", Role.OPERATOR, NOW), NOW)
    assert access.by_session(opened.secret, NOW + SESSION_IDLE - SECOND) is not None
    assert access.by_session(opened.secret, NOW + 2 * SESSION_IDLE - 2 * SECOND) is not None
    assert access.by_session(opened.secret, NOW + 4 * SESSION_IDLE) is None
    assert not doors.sessions

    opened = access.sign_in(access.login_secret("m", Role.OPERATOR, NOW), NOW)
    for minute in range(0, int(SESSION_LIFE.total_seconds() // 60), 30):
        assert access.by_session(opened.secret, NOW + timedelta(minutes=minute)) is not None
    assert access.by_session(opened.secret, NOW + SESSION_LIFE) is None


def test_a_session_dies_with_its_token(access, doors):
    token = access.issue_token("reader", Role.RADIOLOGIST, NOW)
    opened = access.sign_in(token, NOW)
    assert access.by_session(opened.secret, NOW) is not None
    doors.tokens.clear()
    assert access.by_session(opened.secret, NOW) is None


def test_signing_out_ends_the_session(access):
    opened = access.sign_in(access.login_secret("m", Role.OPERATOR, NOW), NOW)
    access.end(opened.secret)
    assert access.by_session(opened.secret, NOW) is None


def test_a_session_needs_its_own_csrf_token_and_a_bearer_needs_none(access):
    first = access.sign_in(access.login_secret("a", Role.OPERATOR, NOW), NOW).principal
    other = access.sign_in(access.login_secret("b", Role.OPERATOR, NOW), NOW).principal
    assert csrf_matches(first, first.csrf)
    assert not csrf_matches(first, other.csrf)
    assert not csrf_matches(first, None)
    assert not csrf_matches(first, "é")
    assert csrf_matches(Principal("t", Role.OPERATOR, frozenset(), "token"), None)
    assert not csrf_matches(anonymous("checkpoint"), None)


def test_entropy_that_falls_short_is_refused(doors):
    with pytest.raises(ValueError, match="entropy"):
        Access(doors, lambda size: b"\0" * (size - 1)).login_secret("m", Role.OPERATOR, NOW)


def test_the_store_keeps_what_the_doors_ask_for(tmp_path, paper):
    database = pytest.importorskip("bridge.store.database")
    people = pytest.importorskip("bridge.store.people")
    engine = database.open_engine(f"sqlite:///{tmp_path}/state.db")
    database.migrate(engine)
    access = Access(people.People(engine), paper.Counting())
    token = access.issue_token("reader", Role.RADIOLOGIST, NOW)
    assert access.by_token(token, NOW).name == "reader"
    link = access.login_secret("m", Role.OPERATOR, NOW)
    won: list[object] = []
    lost: list[AccessError] = []

    def enter() -> None:
        try:
            won.append(access.sign_in(link, NOW))
        except AccessError as error:
            lost.append(error)

    crowd = [threading.Thread(target=enter) for _ in range(6)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert (len(won), len(lost)) == (1, 5)
    opened = access.sign_in(token, NOW)
    assert access.by_session(opened.secret, NOW + 5 * SECOND).role is Role.RADIOLOGIST
    stored = people.People(engine).session(digest_of(opened.secret))
    assert stored.token == digest_of(token)
    access.end(opened.secret)
    assert access.by_session(opened.secret, NOW) is None
