"""The engine's state in numbers, for the health page, the metrics and `radseal doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from bridge.engine import checks

if TYPE_CHECKING:
    from bridge.engine.core import Engine

__all__ = ["report"]


def report(engine: Engine) -> dict[str, Any]:
    """Count by the database's own clock.

    Keys: `alive`; `queued` and `running`, workflows per queue (running includes those that sleep);
    `delayed`; `oldest_queued_seconds`; `dead`, dead letters; `orphans`, running by the book under
    a process that no longer lives (0 a few seconds after any crash); `processes`, living ones that
    run something.
    """
    database = engine._desk._sys_db
    flow = database.tables.workflow_status
    now = database._now_ms_sql()
    with database.engine.begin() as connection:
        counted = connection.execute(
            sa.select(
                flow.c.status,
                flow.c.queue_name,
                sa.func.count(),
                now - sa.func.min(flow.c.created_at),
            )
            .where(flow.c.status.not_in(["SUCCESS", "CANCELLED"]))
            .where(flow.c.application_name == checks.APPLICATION)
            .group_by(flow.c.status, flow.c.queue_name)
        ).all()
    queued = {queue: count for status, queue, count, _ in counted if status == "ENQUEUED"}
    running = {queue: count for status, queue, count, _ in counted if status == "PENDING"}
    ages = [age for status, _, _, age in counted if status == "ENQUEUED"]
    owners = engine._takeover.owners() if engine._takeover else {}
    lease = engine._lease
    gone = {one for one in owners if lease is not None and lease.dead(one)}
    return {
        "alive": engine.alive(),
        "queued": queued,
        "running": running,
        "delayed": sum(count for status, _, count, _ in counted if status == "DELAYED"),
        "oldest_queued_seconds": max(0, *ages, 0) / 1000,
        "dead": sum(
            count
            for status, _, count, _ in counted
            if status in {"ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"}
        ),
        "orphans": sum(owners[one] for one in gone),
        "processes": len(owners) - len(gone),
    }
