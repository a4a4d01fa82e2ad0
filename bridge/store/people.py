"""Rows behind the doors: tokens, one-time links, sessions. Secrets only as their digests."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine, delete, select, update

from bridge.access import LoginRow, Role, SessionRow, TokenRow
from bridge.store.database import reading, writing
from bridge.store.tables import logins, sessions, tokens

__all__ = ["People"]


class People:
    """What `bridge.access.Access` keeps; each call is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_token(self, row: TokenRow) -> None:
        """Keep a token."""
        with writing(self._engine) as connection:
            connection.execute(
                tokens.insert().values(
                    digest=row.digest, name=row.name, role=row.role, created_at=row.created_at,
                    expires_at=row.expires_at, revoked_at=row.revoked_at,
                )
            )  # fmt: skip

    def token(self, digest: str) -> TokenRow | None:
        """Find a token by its digest, revoked and expired ones included."""
        with reading(self._engine) as connection:
            row = connection.execute(select(tokens).where(tokens.c.digest == digest)).first()
        if row is None:
            return None
        return TokenRow(
            row.digest, row.name, Role(row.role), row.created_at, row.expires_at, row.revoked_at
        )

    def add_login(self, row: LoginRow) -> None:
        """Keep a one-time link."""
        with writing(self._engine) as connection:
            connection.execute(
                logins.insert().values(
                    digest=row.digest, name=row.name, role=row.role, expires_at=row.expires_at
                )
            )

    def take_login(self, digest: str) -> LoginRow | None:
        """Remove the link and return it: of two callers one gets None."""
        with writing(self._engine) as connection:
            row = connection.execute(select(logins).where(logins.c.digest == digest)).first()
            gone = connection.execute(delete(logins).where(logins.c.digest == digest))
        if row is None or gone.rowcount != 1:
            return None
        return LoginRow(row.digest, row.name, Role(row.role), row.expires_at)

    def add_session(self, row: SessionRow) -> None:
        """Keep a session."""
        with writing(self._engine) as connection:
            connection.execute(
                sessions.insert().values(
                    digest=row.digest, name=row.name, role=row.role, created_at=row.created_at,
                    expires_at=row.expires_at, seen_at=row.seen_at, token=row.token,
                )
            )  # fmt: skip

    def session(self, digest: str) -> SessionRow | None:
        """Find a session by its digest, expired ones included."""
        with reading(self._engine) as connection:
            row = connection.execute(select(sessions).where(sessions.c.digest == digest)).first()
        if row is None:
            return None
        return SessionRow(
            row.digest, row.name, Role(row.role), row.created_at, row.expires_at, row.seen_at,
            row.token,
        )  # fmt: skip

    def touch_session(self, digest: str, seen_at: datetime) -> None:
        """Write when the session was last used."""
        with writing(self._engine) as connection:
            connection.execute(
                update(sessions).where(sessions.c.digest == digest).values(seen_at=seen_at)
            )

    def end_session(self, digest: str) -> None:
        """Remove the session; unknown digests are no error."""
        with writing(self._engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == digest))
