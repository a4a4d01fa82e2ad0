"""Every metric, defined once; names and labels hold no patient data."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = [
    "CONSENT",
    "DELIVERIES",
    "INDEXED",
    "LEAVES",
    "REGISTRY",
    "RUNS",
    "RUN_SECONDS",
    "WAITING",
    "WITNESSED",
    "WITNESS_BEHIND",
    "WITNESS_LAG",
    "WITNESS_STATE",
]

REGISTRY = CollectorRegistry()
INDEXED = Counter(
    "radseal_instances_indexed_total", "Instances taken from the listener's files", ["outcome"],
    registry=REGISTRY,
)  # fmt: skip
RUNS = Counter("radseal_runs_total", "Runs by outcome", ["model", "outcome"], registry=REGISTRY)
RUN_SECONDS = Histogram(
    "radseal_run_seconds", "Seconds of a run in its child process", ["model"], registry=REGISTRY,
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
)  # fmt: skip
CONSENT = Counter(
    "radseal_consent_decisions_total", "Consent decisions", ["decision", "basis"],
    registry=REGISTRY,
)  # fmt: skip
DELIVERIES = Counter(
    "radseal_deliveries_total", "Delivery attempts by outcome", ["destination", "outcome"],
    registry=REGISTRY,
)  # fmt: skip
LEAVES = Gauge("radseal_ledger_size", "Leaves under the published checkpoint", registry=REGISTRY)
WAITING = Gauge("radseal_inbox_files", "Received files not yet indexed", registry=REGISTRY)
WITNESSED = Gauge(
    "radseal_ledger_witnessed_size", "Leaves under checkpoint.witnessed", registry=REGISTRY
)
WITNESS_BEHIND = Gauge(
    "radseal_witness_behind_leaves", "Published leaves that a witness has not cosigned",
    ["witness"], registry=REGISTRY,
)  # fmt: skip
WITNESS_LAG = Gauge(
    "radseal_witness_lag_seconds", "Since when a published checkpoint waits for a witness",
    ["witness"], registry=REGISTRY,
)  # fmt: skip
WITNESS_STATE = Gauge(
    "radseal_witness_state", "1 for the state in which a witness is", ["witness", "state"],
    registry=REGISTRY,
)  # fmt: skip
