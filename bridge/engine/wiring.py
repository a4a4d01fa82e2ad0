"""How DBOS is set up: one configuration, and the queues of this release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dbos import DBOSConfig, DBOSPortableJSONSerializer

from bridge.engine import checks
from bridge.engine.database import connect

__all__ = ["Queue", "config", "declare_queues"]

_CONNECTIONS = 10


@dataclass(frozen=True)
class Queue:
    """A queue as it was declared; `poll` in seconds."""

    concurrency: int
    partitioned: bool
    poll: float


def config(url: str, executor: str) -> DBOSConfig:
    """Give the configuration: JSON rows, a constant version, this start's own id, no console.

    Without LISTEN/NOTIFY, so that both databases behave alike; none of the paid features.
    """
    return {
        "name": checks.APPLICATION,
        "system_database_url": url,
        "sys_db_pool_size": _CONNECTIONS,
        "db_engine_kwargs": {"hide_parameters": True, "pool_pre_ping": not checks.is_sqlite(url)},
        "application_version": checks.WORKFLOW_VERSION,
        "executor_id": executor,
        "serializer": DBOSPortableJSONSerializer(),
        "use_listen_notify": False,
        "enable_otlp": False,
        "log_level": "WARNING",
        "scheduler_polling_interval_sec": 3600.0,
        "notification_listener_polling_interval_sec": 0.2,
    }


def declare_queues(url: str, queues: Mapping[str, Queue]) -> None:
    """Write the queues' limits before the launch, so that they are served from its first second."""
    client = connect(url)
    try:
        for name, one in queues.items():
            client.register_queue(
                name,
                worker_concurrency=None if one.partitioned else one.concurrency,
                partition_concurrency=one.concurrency if one.partitioned else None,
                polling_interval_sec=one.poll,
            )
    finally:
        client.destroy()
