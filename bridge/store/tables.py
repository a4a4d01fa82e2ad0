"""The tables: business truth with unique keys (design §4.3). Alembic's target, too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

__all__ = ["METADATA", "Instant"]


class Instant(TypeDecorator[datetime]):
    """A UTC instant as ISO 8601 text with microseconds: sorts the same in both databases."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Write the instant; refuses one without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant without a time zone")
        return value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read the instant back."""
        return None if value is None else datetime.fromisoformat(value)


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

studies = Table(
    "studies", METADATA,
    Column("id", String(32), primary_key=True),
    Column("study_instance_uid", String(64), nullable=False, unique=True),
    Column("issuer", Text, nullable=False),
    Column("patient_id", Text, nullable=False),
    Column("others", JSON, nullable=False),  # further identities that a person accepted
    Column("patient_name", Text, nullable=False),
    Column("accession_number", Text, nullable=False),
    Column("study_date", Text, nullable=False),
    Column("modalities", Text, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_words", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Index("ix_studies_state_received_at", "state", "received_at"),
    Index("ix_studies_received_at", "received_at"),
)  # fmt: skip

instances = Table(
    "instances", METADATA,
    Column("arrival", String(120), primary_key=True),
    Column("study_id", String(32), ForeignKey("studies.id"), nullable=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("issuer", Text, nullable=False),
    Column("patient_id", Text, nullable=False),
    Column("dataset_sha256", String(64), nullable=False),
    Column("size", Integer, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("reason", Text, nullable=False),
    Column("attributes", JSON, nullable=False),
    Index("ix_instances_study_id_state", "study_id", "state"),
    Index("ix_instances_sop_instance_uid", "sop_instance_uid"),
)  # fmt: skip

generations = Table(
    "generations", METADATA,
    Column("study_id", String(32), ForeignKey("studies.id"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("subject_ref", Text, nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("last_received_at", Instant, nullable=False),  # by the indexer's steady clock
    Column("declared", Boolean, nullable=False),  # radseal complete
    Column("counts", JSON, nullable=False),  # the last two answers of the source
    Column("sealed_at", Instant, nullable=True),
    Column("evidence", Text, nullable=False),
    Column("closed_at", Instant, nullable=True),
)  # fmt: skip

routes = Table(
    "routes", METADATA,
    Column("id", String(32), primary_key=True),
    Column("study_id", String(32), ForeignKey("studies.id"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("model_digest", String(64), nullable=False),
    Column("model_id", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("state", String(12), nullable=False),
    Column("reason", Text, nullable=False),
    Column("roles", JSON, nullable=False),  # role -> SeriesInstanceUID
    Column("arrivals", JSON, nullable=False),  # role -> list of arrivals
    Column("evidence", JSON, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("input_digest", String(64), nullable=True),
    Column("opened_at", Instant, nullable=False),
    # active, or shadow: then nothing of it is delivered
    Column("mode", String(8), nullable=False, server_default="active"),
    UniqueConstraint("study_id", "generation", "model_digest"),
    Index("ix_routes_model_digest_input_digest", "model_digest", "input_digest"),
)  # fmt: skip

unwanted = Table(
    "unwanted", METADATA,
    Column("study_id", String(32), ForeignKey("studies.id"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("model_digest", String(64), primary_key=True),
    Column("model_id", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("reason", Text, nullable=False),
)  # fmt: skip

runs = Table(
    "runs", METADATA,
    Column("id", String(32), primary_key=True),
    Column("route_id", String(32), ForeignKey("routes.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("code", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=True),
    Column("seconds", Float, nullable=True),
    Column("peak_mb", Float, nullable=True),
    Column("findings", JSON, nullable=True),
    Column("runtime", JSON, nullable=True),
    UniqueConstraint("route_id", "attempt"),
)  # fmt: skip

artifacts = Table(
    "artifacts", METADATA,
    Column("sop_instance_uid", String(64), primary_key=True),
    Column("run_id", String(32), ForeignKey("runs.id"), nullable=False),
    Column("study_id", String(32), ForeignKey("studies.id"), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("partial", Boolean, nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("file", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("composed_at", Instant, nullable=False),
    UniqueConstraint("run_id", "kind"),
    Index("ix_artifacts_study_id", "study_id"),
)  # fmt: skip

deliveries = Table(
    "deliveries", METADATA,
    Column("sop_instance_uid", String(64), ForeignKey("artifacts.sop_instance_uid"),
           primary_key=True),
    Column("destination", String(40), primary_key=True),
    Column("run_id", String(32), ForeignKey("runs.id"), nullable=False),
    Column("state", String(12), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("words", Text, nullable=False),
    Column("changed_at", Instant, nullable=False),
    Index("ix_deliveries_run_id", "run_id"),
    Index("ix_deliveries_state", "state"),
)  # fmt: skip

events = Table(
    "events", METADATA,
    Column("key", String(200), primary_key=True),  # the fact's own key: said once
    Column("study_id", String(32), ForeignKey("studies.id"), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("stage", String(12), nullable=False),
    Column("code", String(40), nullable=False),
    Column("words", Text, nullable=False),
    Column("model_id", Text, nullable=True),
    Column("leaf", String(64), nullable=True),
    Index("ix_events_study_id_at", "study_id", "at"),
)  # fmt: skip

models = Table(
    "models", METADATA,
    Column("digest", String(64), primary_key=True),
    Column("id", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("vendor", Text, nullable=False),
    Column("state", String(12), nullable=False),
    Column("package_digest", String(64), nullable=False),
    Column("folder", Text, nullable=False),
    Column("registered_at", Instant, nullable=False),
    Column("acts", JSON, nullable=False),  # [{act, by, authn, at, leaf}]
    UniqueConstraint("id", "version"),
)  # fmt: skip

vendors = Table(
    "vendors", METADATA,
    Column("vendor", Text, primary_key=True),
    Column("key_sha256", String(64), primary_key=True),
    Column("pem", Text, nullable=False),
    Column("trusted_at", Instant, nullable=False),
    Column("until", Instant, nullable=True),
)  # fmt: skip

signers = Table(
    "signers", METADATA,
    Column("person", String(120), primary_key=True),
    Column("key_sha256", String(64), primary_key=True),
    Column("pem", Text, nullable=False),
    Column("added_at", Instant, nullable=False),
)  # fmt: skip

selftests = Table(
    "selftests", METADATA,
    Column("model_digest", String(64), primary_key=True),
    Column("machine", String(64), primary_key=True),  # models.machine.mark
    Column("passed_at", Instant, nullable=False),
)  # fmt: skip

model_owners = Table(
    "model_owners", METADATA,
    Column("id", Text, primary_key=True),
    Column("vendor", Text, nullable=False),
)  # fmt: skip

consents = Table(
    "consents", METADATA,
    Column("id", String(32), primary_key=True),
    Column("subject_ref", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # the document, under the patient's key
    Column("leaf", String(64), nullable=True),
    Column("added_at", Instant, nullable=False),
    Column("withdrawn_at", Instant, nullable=True),
    Index("ix_consents_subject_ref", "subject_ref"),
)  # fmt: skip

decisions = Table(
    "decisions", METADATA,
    Column("route_id", String(32), ForeignKey("routes.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("moment", String(80), nullable=False),  # inference, or delivery to whom
    Column("decision", String(8), nullable=False),
    Column("basis", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("words", Text, nullable=False),
    Column("documents", JSON, nullable=False),  # leaves of the documents that decided
    Column("request", Text, nullable=False),  # what was asked, to execute it again
    Column("leaf", String(64), nullable=False),
)  # fmt: skip

tokens = Table(
    "tokens", METADATA,
    Column("digest", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(20), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=True),
    Column("revoked_at", Instant, nullable=True),
)  # fmt: skip

logins = Table(
    "logins", METADATA,
    Column("digest", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(20), nullable=False),
    Column("expires_at", Instant, nullable=False),
)  # fmt: skip

sessions = Table(
    "sessions", METADATA,
    Column("digest", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(20), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("token", String(64), nullable=True),
)  # fmt: skip

erasures = Table(
    "erasures", METADATA,
    Column("id", String(32), primary_key=True),
    Column("subject_ref", Text, nullable=False),
    Column("state", String(12), nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # who, under the patient's key; then empty
    Column("basis", Text, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("requested_as", Text, nullable=False),  # the account at the machine
    Column("requested_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("confirmed_by", Text, nullable=True),
    Column("confirmed_as", Text, nullable=True),
    Column("confirmed_at", Instant, nullable=True),
    Column("report", JSON, nullable=False),  # what went, and what had left before
    Column("done_at", Instant, nullable=True),
    Column("leaf", String(64), nullable=True),
    Index("ix_erasures_state", "state"),
)  # fmt: skip

settings = Table(
    "settings", METADATA,
    Column("name", String(120), primary_key=True),
    Column("value", Text, nullable=False),  # JSON, without secrets, as config.changed last said
)  # fmt: skip
