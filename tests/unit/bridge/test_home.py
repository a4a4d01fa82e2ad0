"""bridge.home: a site is made once, opened by all, and its log belongs to its origin."""

from __future__ import annotations

import pytest

from bridge.engine import EngineClient
from bridge.errors import SettingsError, WrongUse
from bridge.home import create, open_rooms, publish
from bridge.site import read
from ledger.verify import read_vkeys, verify_log


def opened(folder):
    settings = read(folder)
    return open_rooms(settings, EngineClient(settings.database_url), prepare=True)


def rewrite(folder, origin: str) -> None:
    text = (folder / "site.toml").read_text()
    old = read(folder).origin
    (folder / "site.toml").write_text(text.replace(old, origin))


def test_a_new_site_has_everything_and_its_secrets_are_ours(tmp_path):
    site = create(tmp_path / "s", 'General "Hospital" \\ Radiology', "a.example/log")
    assert read(site.folder).name == 'General "Hospital" \\ Radiology'
    assert site.folder.stat().st_mode & 0o077 == 0
    assert {p.name for p in (site.folder / "keys").iterdir()} == {
        "site.key", "ledger-ed25519.pem", "ledger-mldsa44.pem",
    }  # fmt: skip
    for secret in (site.folder / "keys").iterdir():
        assert secret.stat().st_mode & 0o077 == 0
    assert len((site.folder / "ledger.vkey").read_text().splitlines()) == 2
    for name in ("vault.db", "state.db", "ledger.policy", "instances", "artifacts"):
        assert (site.folder / name).exists(), name


def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(WrongUse, match="not empty"):
        create(tmp_path, "n", "a.example/log")
    with pytest.raises(WrongUse):
        create(tmp_path / "x", "n", "a.example/log")


@pytest.mark.parametrize("origin", ["https://a.example", "a/", "", "a b", "a\nb", 'a"'])
def test_a_wrong_origin_leaves_nothing_behind(tmp_path, origin):
    with pytest.raises(SettingsError):
        create(tmp_path / "s", "n", origin)
    assert not list((tmp_path / "s").iterdir())
    create(tmp_path / "s", "n", "a.example/log")


def test_the_first_leaf_opens_the_log(tmp_path):
    create(tmp_path / "s", "n", "a.example/log")
    rooms = opened(tmp_path / "s")
    opened(tmp_path / "s")
    publish(rooms)
    keys = read_vkeys((tmp_path / "s/ledger.vkey").read_text())
    assert verify_log(tmp_path / "s/ledger", keys).counts == {"log.opened": 1}


def test_before_the_first_leaf_the_origin_may_change_and_the_keys_files_follow(tmp_path):
    create(tmp_path / "s", "n", "a.example/log")
    rewrite(tmp_path / "s", "b.example/log")
    publish(opened(tmp_path / "s"))
    text = (tmp_path / "s/ledger.vkey").read_text()
    assert "b.example/log" in text
    assert "a.example" not in text + (tmp_path / "s/ledger.policy").read_text()
    verify_log(tmp_path / "s/ledger", read_vkeys(text))


def test_after_it_a_changed_origin_is_refused_in_words(tmp_path):
    create(tmp_path / "s", "n", "a.example/log")
    publish(opened(tmp_path / "s"))
    rewrite(tmp_path / "s", "b.example/log")
    with pytest.raises(SettingsError, match=r"a\.example/log"):
        opened(tmp_path / "s")
    assert "a.example/log" in (tmp_path / "s/ledger.vkey").read_text()


@pytest.mark.parametrize("name", ["site.key", "ledger-ed25519.pem", "ledger-mldsa44.pem"])
def test_a_missing_key_says_where_keys_come_from(tmp_path, name):
    create(tmp_path / "s", "n", "a.example/log")
    (tmp_path / "s/keys" / name).unlink()
    with pytest.raises(SettingsError, match="radseal init"):
        opened(tmp_path / "s")


@pytest.mark.parametrize("name", ["ledger-ed25519.pem", "ledger-mldsa44.pem"])
def test_a_damaged_key_is_a_sentence(tmp_path, name):
    create(tmp_path / "s", "n", "a.example/log")
    (tmp_path / "s/keys" / name).write_bytes(b"rubbish")
    with pytest.raises(SettingsError, match="restore the keys"):
        opened(tmp_path / "s")


def test_another_sites_key_does_not_open_the_vault(tmp_path):
    from bridge.vault import VaultError

    create(tmp_path / "s", "n", "a.example/log")
    (tmp_path / "s/keys/site.key").write_bytes(b"x" * 32)
    with pytest.raises(VaultError, match=r"restore keys/site\.key"):
        opened(tmp_path / "s")


def test_a_site_can_be_opened_by_two_at_once(tmp_path):
    create(tmp_path / "s", "n", "a.example/log")
    one, two = opened(tmp_path / "s"), opened(tmp_path / "s")
    subject = one.vault.subject("GH", "1")
    assert two.vault.subject("GH", "1") == subject
    publish(one)
    publish(two)
