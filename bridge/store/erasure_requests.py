"""Rows of requests to erase: who asked, who confirmed, what went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, select, update

from bridge.store.tables import erasures

__all__ = ["RequestRow", "RequestState", "add", "change", "expire", "find", "listed"]


class RequestState(StrEnum):
    """How far a request is; only `confirmed` has anything left to do."""

    REQUESTED = "requested"
    CONFIRMED = "confirmed"  # from here on it is finished, whatever crashes
    DONE = "done"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request to erase. `sealed` says who, under the patient's key; empty once it is over."""

    id: str
    subject_ref: str
    state: RequestState
    sealed: bytes
    basis: str
    requested_by: str
    requested_as: str
    requested_at: datetime
    expires_at: datetime
    confirmed_by: str | None
    confirmed_as: str | None
    confirmed_at: datetime | None
    report: Mapping[str, Any]
    done_at: datetime | None
    leaf: str | None


def _request(row: Row[Any]) -> RequestRow:
    first, subject_ref, state, sealed, *rest = tuple(row)
    return RequestRow(first, subject_ref, RequestState(state), bytes(sealed), *rest)


def add(connection: Connection, row: RequestRow) -> None:
    """Keep a new request."""
    values = {column.name: getattr(row, column.name) for column in erasures.c}
    connection.execute(erasures.insert().values(**values | {"report": dict(row.report)}))


def find(connection: Connection, request_id: str, *, hold: bool = False) -> RequestRow | None:
    """Find a request; `hold` keeps others from changing it until this transaction ends."""
    query = select(erasures).where(erasures.c.id == request_id)
    row = connection.execute(query.with_for_update() if hold else query).first()
    return None if row is None else _request(row)


def listed(connection: Connection, state: RequestState | None = None) -> list[RequestRow]:
    """List the requests, newest first."""
    query = select(erasures).order_by(erasures.c.requested_at.desc())
    if state is not None:
        query = query.where(erasures.c.state == state)
    return [_request(row) for row in connection.execute(query)]


def change(connection: Connection, request_id: str, **values: Any) -> None:
    """Change columns of a request's row."""
    connection.execute(update(erasures).where(erasures.c.id == request_id).values(**values))


def expire(connection: Connection, now: datetime) -> None:
    """Forget whom requests were about that nobody confirmed in time."""
    connection.execute(
        update(erasures)
        .where(erasures.c.state == RequestState.REQUESTED, erasures.c.expires_at <= now)
        .values(state=RequestState.EXPIRED, sealed=b"")
    )
