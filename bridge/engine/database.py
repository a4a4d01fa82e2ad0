"""How the engine's tables are reached and made; they live in our own database."""

from __future__ import annotations

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer
from dbos._error import DBOSInitializationError
from sqlalchemy.exc import OperationalError

from bridge.engine import checks
from bridge.engine.errors import StartRefused

__all__ = ["connect", "migrate"]


def migrate(url: str) -> None:
    """Create or upgrade the engine's tables in the database of `url`; safe to call at any time.

    Raises `StartRefused` with a sentence where a check fails or the database does not answer.
    """
    checks.quieten()
    checks.installation()
    checks.forbid_pickle()
    if checks.is_sqlite(url):
        checks.python_and_sqlite()
        checks.wal(url)
    client = connect(url)
    try:
        client._sys_db.verify_migrations()
    except DBOSInitializationError:
        client._sys_db.run_migrations()
    except OperationalError as error:
        msg = "the database does not answer; check database.url and that the server runs"
        raise StartRefused(msg) from error
    finally:
        client.destroy()


def connect(url: str, engine: sa.Engine | None = None) -> DBOSClient:
    """Give a client of the engine's tables that runs nothing and connects when first used."""
    return DBOSClient(
        system_database_url=url if engine is None else None,
        system_database_engine=engine,
        serializer=DBOSPortableJSONSerializer(),
        application_name=checks.APPLICATION,
        system_database_pool_size=4,
        retry_connection_errors=engine is not None,
        lazy=True,
    )
