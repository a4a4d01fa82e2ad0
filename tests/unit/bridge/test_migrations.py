"""The schema is what the code says, and every site of an earlier release is still a site."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from bridge.store import story
from bridge.store.database import migrate, open_engine, reading
from bridge.store.tables import METADATA
from ledger.errors import LedgerError
from ledger.verify import read_vkeys, verify_log

SITES = Path(__file__).resolve().parents[2] / "sites"
RELEASES = sorted(folder.name for folder in SITES.iterdir() if (folder / "expected.json").exists())
AGAIN = "if this release is not out yet, make its site again: python tests/sites/make.py"


@pytest.fixture
def site(tmp_path):
    def copy(release: str) -> Path:
        return Path(shutil.copytree(SITES / release, tmp_path / release))

    return copy


def differences(engine: sa.Engine) -> list:
    """What a new migration would have to do; the engine's own tables stand beside ours."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "version_table": "schema_version",
                "include_name": lambda name, kind, _parents: (
                    kind != "table" or name in METADATA.tables
                ),
            },
        )
        return compare_metadata(context, METADATA)


def schema(engine: sa.Engine) -> dict[str, list[tuple]]:
    """Each table's columns with type, null and key, and its indexes and unique constraints."""
    inspector = sa.inspect(engine)
    return {
        name: [
            *sorted(
                (c["name"], str(c["type"]), c["nullable"], c["primary_key"])
                for c in inspector.get_columns(name)
            ),
            *sorted((i["name"], tuple(i["column_names"])) for i in inspector.get_indexes(name)),
            *sorted(
                (u["name"], tuple(u["column_names"]))
                for u in inspector.get_unique_constraints(name)
            ),
            *sorted(
                (tuple(f["constrained_columns"]), f["referred_table"])
                for f in inspector.get_foreign_keys(name)
            ),
        ]
        for name in METADATA.tables
    }


def test_the_migrations_make_the_tables_of_the_code(tmp_path):
    migrated = open_engine(f"sqlite:///{tmp_path}/migrated.db")
    migrate(migrated)
    made = open_engine(f"sqlite:///{tmp_path}/made.db")
    METADATA.create_all(made)
    assert differences(migrated) == []
    assert schema(migrated) == schema(made)
    assert set(sa.inspect(migrated).get_table_names()) == {*METADATA.tables, "schema_version"}


@pytest.mark.peer
def test_they_do_so_on_postgresql(database_url):
    engine = open_engine(database_url)
    migrate(engine)
    migrate(engine)
    assert differences(engine) == []
    engine.dispose()


def test_there_is_a_site_to_migrate():
    assert RELEASES


@pytest.mark.parametrize("release", RELEASES)
def test_an_earlier_site_is_migrated_and_its_studies_are_listed(site, release):
    folder = site(release)
    expected = json.loads((folder / "expected.json").read_text())
    engine = open_engine(f"sqlite:///{folder}/state.db")
    migrate(engine)
    assert differences(engine) == [], AGAIN
    with reading(engine) as connection:
        lines, total = story.list_studies(connection)
        assert {line.study_instance_uid: str(line.state) for line in lines} == expected["studies"]
        assert total == len(expected["studies"])
        told = [story.story(connection, line.id) for line in lines]
    assert sum(len(one.lines) for one in told) > 10
    delivered = [
        sent.state
        for one in told
        for route in one.routes
        for artifact in route.artifacts
        for sent in artifact.deliveries
    ]
    assert delivered == ["stored", "stored"]
    engine.dispose()


@pytest.mark.parametrize("release", RELEASES)
def test_an_earlier_log_verifies_by_its_vkey_alone(site, release):
    folder = site(release)
    expected = json.loads((folder / "expected.json").read_text())
    vkeys = read_vkeys((folder / "ledger.vkey").read_text())
    report = verify_log(folder / "ledger", vkeys)
    assert report.size == expected["size"]
    assert dict(sorted(report.counts.items())) == expected["leaves"]
    checkpoint = folder / "ledger/checkpoint"
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.write_bytes(bytes(data))
    with pytest.raises(LedgerError):
        verify_log(folder / "ledger", vkeys)


@pytest.mark.parametrize("release", RELEASES)
def test_every_stored_leaf_of_the_story_is_in_the_log(site, release):
    folder = site(release)
    engine = open_engine(f"sqlite:///{folder}/state.db")
    with reading(engine) as connection:
        told = {row[0] for row in connection.exec_driver_sql(
            "SELECT leaf FROM events WHERE leaf IS NOT NULL")}  # fmt: skip
    ledger = open_engine(f"sqlite:///{folder}/ledger.db")
    with reading(ledger) as connection:
        import base64

        known = {
            base64.b64encode(value).decode()
            for row in connection.exec_driver_sql("SELECT * FROM leaves")
            for value in row
            if isinstance(value, bytes) and len(value) == 32
        }
    assert told
    assert told <= known


@pytest.mark.parametrize("release", RELEASES)
def test_a_committed_site_holds_no_key_and_is_small(release):
    files = [file for file in (SITES / release).rglob("*") if file.is_file()]
    assert not (SITES / release / "keys").exists()
    for file in files:
        assert b"PRIVATE KEY" not in file.read_bytes(), file
    assert sum(file.stat().st_size for file in files) < 300_000
