"""bridge.site: site.toml and the environment; each error is one sentence with key and fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.errors import SettingsError
from bridge.site import Site, find_folder, read

HEAD = 'name = "Test"\norigin = "a.example.org/log"\n'
SOURCE = '[[sources]]\nname = "ct1"\nae_title = "CT1"\n'
DESTINATION = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "h"\nport = 104\n'


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in list(os.environ):
        if name.startswith("RADSEAL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def site(tmp_path):
    def make(text: str) -> Site:
        (tmp_path / "site.toml").write_text(text, encoding="utf-8")
        return read(tmp_path)

    return make


def test_everything_but_name_and_origin_has_a_default(site, tmp_path):
    found = site(HEAD)
    assert found.listener.port == 11112
    assert found.listener.accept == "listed"
    assert found.http.host == "127.0.0.1"
    assert found.completion.quiet_seconds == 30
    assert found.database_url == f"sqlite:///{tmp_path}/state.db"
    assert found.instances == tmp_path / "instances"
    assert not found.on_postgresql
    assert found.consent.unidentified == "deny"
    assert found.ledger.public == "checkpoint"


@pytest.mark.parametrize(
    ("text", "key", "fix"),
    [
        ("", "name", "required"),
        ('name = "x"\n', "origin", "required"),
        (HEAD + "colour = 1\n", "colour", "unknown key"),
        (HEAD + "[listener]\nprot = 1\n", "listener.prot", "unknown key"),
        (HEAD + "[listener]\nport = 0\n", "listener.port", "greater than or equal to 1"),
        (HEAD + '[listener]\nport = "x"\n', "listener.port", "integer"),
        (HEAD + "listener = 5\n", "listener", ""),
        (HEAD + '[listener]\nae_title = "12345678901234567"\n', "listener.ae_title", "1 to 16"),
        (HEAD + '[listener]\nae_title = "A\\\\B"\n', "listener.ae_title", "no backslash"),
        (HEAD + '[listener]\naccept = "all"\n', "listener.accept", "'listed' or 'any'"),
        (HEAD + "[completion]\nquiet_seconds = -1\n", "completion.quiet_seconds", "greater"),
        (HEAD + "[completion]\nquiet_seconds = nan\n", "completion.quiet_seconds", "finite"),
        (HEAD + "[completion]\nmax_wait_seconds = inf\n", "completion.max_wait_seconds", "finite"),
        (HEAD + '[database]\nurl = "mysql://x"\n', "database", "postgresql+psycopg"),
        (HEAD + '[storage]\nurl = "s3://b"\n', "storage", "only file:FOLDER"),
        (HEAD + '[consent]\nunidentified = "maybe"\n', "consent.unidentified", "'deny' or"),
        (HEAD + '[consent]\npolicy = "none"\n', "consent.policy", "opt-out-treatment"),
        (HEAD + '[consent]\npurpose = "TREATSD"\n', "consent.purpose", "TREATDS"),
        (HEAD + "[ledger]\nwitness_lag_minutes = 0\n", "witness_lag_minutes", "greater than 0"),
        (HEAD + SOURCE.replace("CT1", " "), "sources.0.ae_title", "AE title"),
        (HEAD + SOURCE.replace('"ct1"', '"CT 1"'), "sources.0.name", "lower case"),
        (HEAD + SOURCE + SOURCE, "sources", "used twice"),
        (HEAD + SOURCE + "query = true\n", "sources.0", "needs host and port"),
        (HEAD + SOURCE + 'ask = "pacs"\n', "sources", "not there"),
        (HEAD + DESTINATION + DESTINATION, "destinations", "used twice"),
        (HEAD + DESTINATION + "commitment = true\n", "destinations.0", "set it to false"),
        (HEAD + DESTINATION + 'send = ["pdf"]\n', "destinations.0.send.0", "'sr'"),
        (HEAD + DESTINATION.replace('host = "h"\n', ""), "destinations.0.host", "required"),
        (HEAD.replace("a.example", "https://a.example"), "origin", "without a scheme"),
        (HEAD.replace("/log", "/"), "origin", "final slash"),
        (HEAD + 'folder = "/tmp"\n', "folder", "unknown key"),
        ("name = ", "", "is not TOML"),
    ],
)
def test_a_wrong_site_toml_is_one_sentence_with_key_and_fix(site, text, key, fix):
    with pytest.raises(SettingsError) as wrong:
        site(text)
    said = str(wrong.value)
    assert "\n" not in said
    assert "site.toml" in said
    assert key in said
    assert fix in said


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "site.toml").write_bytes(b"name = \xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML"):
        read(tmp_path)


def test_no_site_here(tmp_path):
    with pytest.raises(SettingsError, match="radseal init"):
        read(tmp_path)


@pytest.mark.parametrize("what", ["folder", "unreadable"])
def test_a_site_toml_that_cannot_be_read(tmp_path, what, monkeypatch):
    path = tmp_path / "site.toml"
    if what == "folder":
        path.mkdir()
    else:
        path.write_text(HEAD)

        def refuse(*_args, **_kw):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError, match="cannot be read"):
        read(tmp_path)


# The environment.


def test_the_environment_wins(site, monkeypatch):
    monkeypatch.setenv("RADSEAL_LISTENER__PORT", "4242")
    monkeypatch.setenv("RADSEAL_SOURCES", '[{"name": "ct9", "ae_title": "CT9"}]')
    found = site(HEAD + "[listener]\nport = 1\nae_title = 'MINE'\n" + SOURCE)
    assert found.listener.port == 4242
    assert found.listener.ae_title == "MINE"
    assert [s.name for s in found.sources] == ["ct9"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RADSEAL_LISTENER__PORT", "x", "listener.port"),
        ("RADSEAL_LISTENER__PROT", "1", "listener.prot"),
        ("RADSEAL_LISTNER__PORT", "1", "listner"),
        ("RADSEAL_SOURCES", "not json", "sources"),
        ("RADSEAL_LISTENER", "{", "listener"),
        ("RADSEAL_FOLDER", "/tmp", "RADSEAL_SITE"),
    ],
)
def test_a_wrong_environment_is_a_sentence_as_well(site, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as wrong:
        site(HEAD)
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_where_the_site_is(tmp_path, monkeypatch):
    assert find_folder(tmp_path) == tmp_path
    monkeypatch.setenv("RADSEAL_SITE", str(tmp_path / "x"))
    assert find_folder(None) == tmp_path / "x"
    monkeypatch.delenv("RADSEAL_SITE")
    monkeypatch.chdir(tmp_path)
    assert find_folder(None) == tmp_path


# What it is asked.


def test_sources(site):
    found = site(
        HEAD
        + '[patients]\nissuer = "GH"\n'
        + SOURCE
        + 'ask = "pacs"\n'
        + '[[sources]]\nname = "pacs"\nae_title = "PACS"\nhost = "10.0.0.1"\nport = 104\n'
        + 'query = true\nissuer = "OTHER"\n'
        + '[[sources]]\nname = "mr"\nae_title = "MR"\n'
    )
    assert found.source_of("CT1 ").name == "ct1"
    assert found.source_of("ct1") is None
    assert found.askable("CT1").name == "pacs"
    assert found.askable("PACS").name == "pacs"
    assert found.askable("MR") is None
    assert found.askable("NOBODY") is None
    assert found.issuer_of("PACS") == "OTHER"
    assert found.issuer_of("MR") == found.issuer_of("NOBODY") == "GH"


def test_an_absolute_database_and_postgresql(site):
    assert site(HEAD + '[database]\nurl = "sqlite:////var/x.db"\n').database_url == (
        "sqlite:////var/x.db"
    )
    url = "postgresql+psycopg://h/d"
    found = site(HEAD + f'[database]\nurl = "{url}"\n')
    assert found.database_url == url
    assert found.on_postgresql


def test_settings_are_frozen(site):
    with pytest.raises(ValueError, match="frozen"):
        site(HEAD).name = "other"


def test_the_command_says_it_on_stderr_with_exit_2(tmp_path):
    (tmp_path / "site.toml").write_text(HEAD + "[listener]\nprot = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "status", "--site", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "listener.prot" in done.stderr
    assert "Traceback" not in done.stderr
