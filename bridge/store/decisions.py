"""Rows of consent's decisions, numbered along each route."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from bridge.store.database import insert_once
from bridge.store.tables import decisions, routes

__all__ = ["CONSENT", "add_decision", "decisions_of", "last_decision"]

CONSENT = "consent"
"""The lock under which decisions, withdrawals and what takes a model out of use are appended."""


def add_decision(
    connection: Connection,
    route_id: str,
    number: int,
    *,
    moment: str,
    decision: str,
    basis: str,
    reason: str,
    words: str,
    documents: Sequence[str],
    request: str,
    leaf: str,
    at: datetime,
) -> None:
    """Keep the route's consent decision of this number; said again it changes nothing."""
    insert_once(connection, decisions, {
        "route_id": route_id, "number": number, "at": at, "moment": moment,
        "decision": decision, "basis": basis, "reason": reason, "words": words,
        "documents": list(documents), "request": request, "leaf": leaf,
    })  # fmt: skip


def decisions_of(connection: Connection, study_id: str) -> list[Row[Any]]:
    """List every consent decision of a study's routes, oldest first."""
    return list(
        connection.execute(
            select(decisions)
            .join(routes, routes.c.id == decisions.c.route_id)
            .where(routes.c.study_id == study_id)
            .order_by(decisions.c.at, decisions.c.route_id, decisions.c.number)
        )
    )


def last_decision(connection: Connection, route_id: str) -> Row[Any] | None:
    """Find the newest consent decision of a route."""
    return connection.execute(
        select(decisions)
        .where(decisions.c.route_id == route_id)
        .order_by(decisions.c.number.desc())
    ).first()
