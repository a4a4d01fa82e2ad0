"""Rows of what the site trusts and keeps: vendors' keys, models, consent documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from bridge.access import is_same_person
from bridge.errors import NotFound
from bridge.store.database import insert_once
from bridge.store.tables import consents, model_owners, models, selftests, signers, vendors

__all__ = [
    "ConsentRow",
    "ModelRow",
    "VendorKey",
    "add_consent",
    "add_model",
    "add_signer_key",
    "any_withdrawn",
    "consent",
    "consents_of",
    "documents_of",
    "find_models",
    "list_consents",
    "list_models",
    "named_models",
    "note_selftest",
    "owner",
    "selftest_passed",
    "set_model",
    "signer_keys",
    "take_ownership",
    "trust_vendor_key",
    "untrust_vendor_key",
    "vendor_keys",
    "withdraw_consent",
]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A registered model; `acts` says who did what when.

    Each has {act, by, authn, at, leaf}; activated also {mode, scope}, superseded and suspended
    {reason}, superseded {successor}: the digest of the model that took over.
    """

    digest: str
    id: str
    version: str
    name: str
    vendor: str
    state: str
    package_digest: str
    folder: str
    registered_at: datetime
    acts: Sequence[Mapping[str, Any]]

    def leaf_of(self, act: str) -> str | None:
        """Give the leaf of the newest act of this name."""
        newest = self.newest(act)
        return None if newest is None else newest["leaf"]

    def newest(self, *acts: str) -> Mapping[str, Any] | None:
        """Give the newest act that is one of these."""
        return next((a for a in reversed(self.acts) if a["act"] in acts), None)

    @property
    def scope(self) -> Mapping[str, Sequence[str]]:
        """Which studies the newest activation is for (bridge.scope); empty for all."""
        return (self.newest("activated") or {}).get("scope") or {}

    def approvers(self, *, proven: bool) -> list[str]:
        """Who approved it, one name for each person; `proven`: only signed words count."""
        found: list[str] = []
        for one in self.acts:
            counts = one["act"] == "approved" and (one["authn"] == "proven" or not proven)
            if counts and not any(is_same_person(one["by"], other) for other in found):
                found.append(one["by"])
        return found


@dataclass(frozen=True, slots=True)
class ConsentRow:
    """A consent document as kept; `sealed` is encrypted under the patient's key."""

    id: str
    subject_ref: str
    status: str
    sealed: bytes
    leaf: str | None
    added_at: datetime
    withdrawn_at: datetime | None


@dataclass(frozen=True, slots=True)
class VendorKey:
    """A vendor's public key, trusted from `since` on and before `until` (None: no end is set)."""

    vendor: str
    key_sha256: str
    pem: str
    since: datetime
    until: datetime | None

    def trusted(self, at: datetime) -> bool:
        """Whether the site trusts this key at that time."""
        return self.since <= at and (self.until is None or at < self.until)


def trust_vendor_key(connection: Connection, key: VendorKey) -> bool:
    """Trust a vendor's public key; False if it was known, then these dates replace its own."""
    added = insert_once(connection, vendors, {
        "vendor": key.vendor, "key_sha256": key.key_sha256, "pem": key.pem,
        "trusted_at": key.since, "until": key.until,
    })  # fmt: skip
    if not added:
        connection.execute(
            update(vendors)
            .where(vendors.c.vendor == key.vendor, vendors.c.key_sha256 == key.key_sha256)
            .values(trusted_at=key.since, until=key.until)
        )
    return added


def untrust_vendor_key(connection: Connection, key_sha256: str, at: datetime) -> None:
    """Trust a key no longer from that time on, for whichever vendors it was trusted."""
    connection.execute(
        update(vendors)
        .where(
            vendors.c.key_sha256 == key_sha256,
            or_(vendors.c.until.is_(None), vendors.c.until > at),
        )
        .values(until=at)
    )


def vendor_keys(connection: Connection, vendor: str | None = None) -> list[VendorKey]:
    """List public keys, of one vendor or of all, with their dates: also those out of date."""
    query = select(vendors).order_by(vendors.c.vendor, vendors.c.key_sha256)
    if vendor is not None:
        query = query.where(vendors.c.vendor == vendor)
    return [
        VendorKey(row.vendor, row.key_sha256, row.pem, row.trusted_at, row.until)
        for row in connection.execute(query)
    ]


def add_signer_key(
    connection: Connection, person: str, key_sha256: str, pem: str, at: datetime
) -> bool:
    """Let a person sign acts with this key; False if it was known before."""
    return insert_once(connection, signers, {
        "person": person, "key_sha256": key_sha256, "pem": pem, "added_at": at,
    })  # fmt: skip


def signer_keys(connection: Connection) -> list[tuple[str, str]]:
    """List (person, SHA-256 of a key that signs for this person)."""
    rows = connection.execute(select(signers.c.person, signers.c.key_sha256))
    return [(row.person, row.key_sha256) for row in rows]


def note_selftest(connection: Connection, digest: str, machine: str, at: datetime) -> None:
    """Keep that a model's self-test passed on such a machine (models.machine)."""
    values = {"model_digest": digest, "machine": machine, "passed_at": at}
    insert_once(connection, selftests, values)


def selftest_passed(connection: Connection, digest: str, machine: str) -> bool:
    """Whether a model's self-test ever passed on such a machine."""
    this = (selftests.c.model_digest == digest, selftests.c.machine == machine)
    return connection.execute(select(selftests.c.passed_at).where(*this)).first() is not None


def owner(connection: Connection, model_id: str) -> str | None:
    """Name the vendor that owns a model id; None while nobody does."""
    query = select(model_owners.c.vendor).where(model_owners.c.id == model_id)
    found: str | None = connection.execute(query).scalar_one_or_none()
    return found


def take_ownership(connection: Connection, model_id: str, vendor: str) -> str:
    """Let the first vendor that registers a model id own it; returns the owner."""
    insert_once(connection, model_owners, {"id": model_id, "vendor": vendor})
    return str(owner(connection, model_id))


def add_model(connection: Connection, row: ModelRow) -> bool:
    """Register a model; False if this digest or this version is there already."""
    return insert_once(connection, models, {
        "digest": row.digest, "id": row.id, "version": row.version, "name": row.name,
        "vendor": row.vendor, "state": row.state, "package_digest": row.package_digest,
        "folder": row.folder, "registered_at": row.registered_at, "acts": list(row.acts),
    })  # fmt: skip


def _model(row: Row[Any]) -> ModelRow:
    return ModelRow(*tuple(row))


def list_models(connection: Connection, *states: str) -> list[ModelRow]:
    """List the models, of these states or all."""
    query = select(models).order_by(models.c.id, models.c.registered_at)
    if states:
        query = query.where(models.c.state.in_(states))
    return [_model(row) for row in connection.execute(query)]


def find_models(connection: Connection, name: str) -> list[ModelRow]:
    """Find models by MODEL, MODEL@VERSION or digest, newest first."""
    model_id, _, version = name.partition("@")
    query = select(models).where(or_(models.c.id == model_id, models.c.digest == name))
    if version:
        query = query.where(models.c.version == version)
    return [_model(r) for r in connection.execute(query.order_by(models.c.registered_at.desc()))]


def named_models(connection: Connection, name: str) -> list[ModelRow]:
    """Find at least one model, as `find_models`; raises NotFound."""
    rows = find_models(connection, name)
    if not rows:
        raise NotFound(f"no model is called {name}; see `radseal model list`")
    return rows


def set_model(
    connection: Connection, digest: str, state: str, acts: Sequence[Mapping[str, Any]]
) -> None:
    """Change a model's state and the list of acts that led there."""
    connection.execute(
        update(models).where(models.c.digest == digest).values(state=state, acts=list(acts))
    )


def add_consent(connection: Connection, row: ConsentRow) -> bool:
    """Keep a consent document."""
    return insert_once(connection, consents, {
        "id": row.id, "subject_ref": row.subject_ref, "status": row.status,
        "sealed": row.sealed, "leaf": row.leaf, "added_at": row.added_at,
        "withdrawn_at": row.withdrawn_at,
    })  # fmt: skip


def consents_of(connection: Connection, subject_refs: Sequence[str]) -> list[ConsentRow]:
    """List the documents of these subjects that were not withdrawn, oldest first."""
    rows = connection.execute(
        select(consents)
        .where(consents.c.subject_ref.in_(list(subject_refs)), consents.c.withdrawn_at.is_(None))
        .order_by(consents.c.added_at)
    )
    return [ConsentRow(*row) for row in rows]


def documents_of(connection: Connection, subject_refs: Sequence[str]) -> list[ConsentRow]:
    """List every document of these subjects, also the withdrawn ones, oldest first."""
    rows = connection.execute(
        select(consents)
        .where(consents.c.subject_ref.in_(list(subject_refs)))
        .order_by(consents.c.added_at)
    )
    return [ConsentRow(*row) for row in rows]


def any_withdrawn(connection: Connection, leaves: Sequence[str]) -> bool:
    """Whether one of the documents with these leaves was withdrawn."""
    row = connection.execute(
        select(consents.c.id).where(
            consents.c.leaf.in_(list(leaves)), consents.c.withdrawn_at.is_not(None)
        )
    ).first()
    return row is not None


def list_consents(connection: Connection) -> list[ConsentRow]:
    """List all documents, oldest first."""
    return [
        ConsentRow(*r) for r in connection.execute(select(consents).order_by(consents.c.added_at))
    ]


def consent(connection: Connection, consent_id: str) -> ConsentRow | None:
    """Find a document."""
    row = connection.execute(select(consents).where(consents.c.id == consent_id)).first()
    return None if row is None else ConsentRow(*row)


def withdraw_consent(
    connection: Connection, consent_id: str, at: datetime, *, status: str | None = None
) -> None:
    """Say that a document no longer speaks; with `status` why, if it was not withdrawn."""
    values = {"withdrawn_at": at} | ({} if status is None else {"status": status})
    connection.execute(update(consents).where(consents.c.id == consent_id).values(**values))
