"""bridge.store: rows are said once, transactions hold, instants keep their order."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from bench import ANNA, NOW, images

from bridge.store import arrivals, catalog, story, work
from bridge.store.catalog import ConsentRow
from bridge.store.database import insert_once, migrate, open_engine, reading, writing
from bridge.store.tables import METADATA, Instant, events, generations, vendors
from bridge.study import StudyState


@pytest.fixture
def engine(tmp_path):
    made = open_engine(f"sqlite:///{tmp_path}/x.db")
    migrate(made)
    yield made
    made.dispose()


def test_sqlite_is_durable_and_in_wal_mode(engine):
    with reading(engine) as connection:

        def pragma(name):
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2
        assert pragma("foreign_keys") == 1


def test_migrate_can_be_repeated(engine):
    migrate(engine)
    with reading(engine) as connection:
        tables = set(sa.inspect(connection).get_table_names())
    assert set(METADATA.tables) <= tables


def test_a_write_is_all_or_nothing(engine):
    row = {"vendor": "v", "key_sha256": "k", "pem": "p", "trusted_at": NOW, "until": None}

    def half() -> None:
        with writing(engine) as connection:
            assert insert_once(connection, vendors, row)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with writing(engine) as connection:
        assert insert_once(connection, vendors, row)
        assert not insert_once(connection, vendors, row)
    with reading(engine) as connection:
        assert [key.pem for key in catalog.vendor_keys(connection, "v")] == ["p"]


def test_writers_wait_for_each_other(engine):
    """BEGIN IMMEDIATE: a read followed by a write sees nobody between."""
    with writing(engine) as connection:
        connection.execute(
            vendors.insert(),
            {"vendor": "v", "key_sha256": "k", "pem": "0", "trusted_at": NOW, "until": None},
        )

    def count() -> None:
        for _ in range(20):
            with writing(engine) as connection:
                value = int(connection.execute(sa.select(vendors.c.pem)).scalar_one())
                connection.execute(vendors.update().values(pem=str(value + 1)))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as connection:
        assert connection.execute(sa.select(vendors.c.pem)).scalar_one() == "80"


def test_the_text_of_an_error_holds_no_parameters(engine):
    with pytest.raises(sa.exc.IntegrityError) as error, writing(engine) as connection:
        connection.execute(
            events.insert(),
            {"key": "k", "study_id": "nobody", "generation": 1, "at": NOW, "stage": "receive",
             "code": "x", "words": "Canary^Name", "model_id": None, "leaf": None},
        )  # fmt: skip
    assert "Canary" not in str(error.value)


def test_instants_are_utc_text_that_sorts_as_time():
    kind = Instant()
    dialect = sa.create_engine("sqlite://").dialect
    east = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    same = datetime(2026, 1, 1, 0, tzinfo=UTC)
    assert kind.process_bind_param(east, dialect) == kind.process_bind_param(same, dialect)
    moments = [same, same + timedelta(microseconds=1), same + timedelta(seconds=1)]
    texts = [kind.process_bind_param(m, dialect) for m in moments]
    assert texts == sorted(texts)
    assert [kind.process_result_value(t, dialect) for t in texts] == moments
    with pytest.raises(ValueError, match="time zone"):
        kind.process_bind_param(datetime(2026, 1, 1), dialect)  # noqa: DTZ001


def test_a_fact_is_told_once(desk):
    desk.receive(*images(1))
    study = desk.study(images(1)[0].StudyInstanceUID)
    said = {"key": "k", "study_id": study.id, "generation_number": 1, "at": NOW,
            "stage": "route", "code": "c", "words": "first", "leaf": "L"}  # fmt: skip
    with writing(desk.rooms.database) as connection:
        assert arrivals.tell(connection, **said)
        assert not arrivals.tell(connection, **{**said, "words": "second", "leaf": "M"})
        assert arrivals.leaf_of(connection, "k") == "L"
        with pytest.raises(sa.exc.NoResultFound):
            arrivals.leaf_of(connection, "never")


def test_a_generation_is_opened_once(desk):
    desk.receive(*images(1))
    study = desk.study(images(1)[0].StudyInstanceUID)
    later = desk.clock.pass_(60)
    with writing(desk.rooms.database) as connection:
        arrivals.open_generation(connection, study.id, 1, "other", later)
        found = arrivals.generation(connection, study.id, 1)
        assert found.opened_at < later
        assert arrivals.generation(connection, study.id, 2) is None
        assert len(list(connection.execute(sa.select(generations)))) == 1


def test_modalities_are_a_sorted_set(desk):
    desk.receive(*images(1), *images(1, series="b", Modality="SR"), *images(1, series="c"))
    assert desk.story(images(1)[0].StudyInstanceUID).line.modalities == "CT SR"


def test_a_model_id_belongs_to_the_first_vendor(engine):
    with writing(engine) as connection:
        assert catalog.take_ownership(connection, "m", "first") == "first"
        assert catalog.take_ownership(connection, "m", "second") == "first"


def test_a_vendors_key_can_end(engine):
    with writing(engine) as connection:
        connection.execute(
            vendors.insert(),
            {"vendor": "v", "key_sha256": "k", "pem": "p", "trusted_at": NOW,
             "until": NOW + timedelta(days=1)},
        )  # fmt: skip
        (key,) = catalog.vendor_keys(connection, "v")
        assert [key.trusted(NOW + timedelta(days=d)) for d in (-1, 0, 1)] == [False, True, False]
        assert catalog.vendor_keys(connection, "w") == []


def test_withdrawn_documents_no_longer_speak(engine):
    row = ConsentRow("c", "subject", "active", b"sealed", "leaf", NOW, None)
    with writing(engine) as connection:
        assert catalog.add_consent(connection, row)
        assert not catalog.add_consent(connection, row)
        assert catalog.consents_of(connection, ["subject"]) == [row]
        assert catalog.consents_of(connection, ["other"]) == []
        catalog.withdraw_consent(connection, "c", NOW)
        assert catalog.consents_of(connection, ["subject"]) == []
        assert catalog.consent(connection, "c").withdrawn_at == NOW
        assert len(catalog.list_consents(connection)) == 1


# Reading for people.


def test_studies_are_listed_newest_first_searched_and_paged(desk):
    for number in range(3):
        desk.clock.pass_(1)
        desk.receive(*images(1, study=f"s{number}", AccessionNumber=f"ACC%{number}"))
    uid = images(1, study="s1")[0].StudyInstanceUID
    with reading(desk.rooms.database) as connection:
        lines, total = story.list_studies(connection, limit=2)
        assert total == 3
        assert [line.accession_number for line in lines] == ["ACC%2", "ACC%1"]
        assert story.list_studies(connection, limit=2, offset=2)[0][0].accession_number == "ACC%0"
        assert story.list_studies(connection, search="c%1")[1] == 1
        assert story.list_studies(connection, search="a%c")[1] == 0  # no wildcard
        assert story.list_studies(connection, search=ANNA.id.lower())[1] == 3
        assert story.list_studies(connection, uid=uid)[1] == 1
        assert story.list_studies(connection, modality="CT")[1] == 3
        assert story.list_studies(connection, modality="C%")[1] == 0
        assert story.list_studies(connection, state=StudyState.FAILED)[1] == 0
        assert story.counts(connection) == {StudyState.RECEIVING: 3}


def test_a_study_is_found_by_either_name(desk):
    desk.receive(*images(1))
    uid = images(1)[0].StudyInstanceUID
    study = desk.study(uid)
    with reading(desk.rooms.database) as connection:
        assert story.find(connection, uid) == story.find(connection, study.id) == study.id
        assert story.find(connection, "1.2") is None
        with pytest.raises(KeyError):
            work.place(connection, "nobody")
