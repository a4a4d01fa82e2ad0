"""The keys that give the ledger's random strings their meaning, one per patient.

    site key ──wraps──▶ K_p, random, one per patient (or per study without PatientID)

What is derived from K_p, and what it is good for: ``bridge/commitments.py``. Destroying K_p
leaves every leaf and every proof intact and meaningless.

What destroying cannot reach is said plainly: copies of the vault in backups, the write-ahead
archives of a PostgreSQL server, and blocks that a flash drive has not yet recycled. Those
copies are wrapped by the site key; they expire with the backups.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.dialects import postgresql, sqlite

from bridge.commitments import KEY_BYTES, StudyKey, exactly, mac, subject_alias, text_bytes
from bridge.errors import RadsealError

Entropy = Callable[[int], bytes]

_NONCE_BYTES = 12
_SEALED = b"\x01"
_SCHEMA_LOCK = 0x72_61_64_73_76_61_75_6C  # "radsvaul", one advisory lock for creating the tables

_metadata = sa.MetaData()
_subjects = sa.Table(
    "vault_subject",
    _metadata,
    sa.Column("ref", sa.String(32), primary_key=True),
    sa.Column("lookup", sa.LargeBinary, unique=True, nullable=True),
    sa.Column("alias", sa.String(96), unique=True, nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
)
_suppressions = sa.Table(
    "vault_suppression",
    _metadata,
    sa.Column("lookup", sa.LargeBinary, primary_key=True),
)
_facts = sa.Table(
    "vault_fact",
    _metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


class VaultError(RadsealError):
    """The vault cannot do what was asked; the text holds no patient data."""


class UnknownSubject(VaultError):
    """No subject has this reference."""


class SubjectErased(VaultError):
    """The subject's key was destroyed; what it protected cannot be read again."""


@dataclass(frozen=True)
class Subject:
    """A patient (or a study without PatientID) as the rest of radseal may know it.

    ``ref`` is the vault's random row id, for our own tables. ``alias`` stands in leaves:
    ``urn:radseal:subject:`` and 64 hex digits.
    """

    ref: str
    alias: str


def make_tables(engine: sa.Engine) -> None:
    """Make the vault's empty tables, for rows that come from a backup."""
    with engine.begin() as connection:
        for table in _metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))


def new_site_key(entropy: Entropy) -> bytes:
    """Return a fresh site key: 32 bytes from ``entropy``, to be kept 0600 in ``keys/site.key``."""
    return exactly(KEY_BYTES, entropy(KEY_BYTES), "the entropy source")


class Vault:
    """Per-patient keys in ``vault.db``, or in PostgreSQL, each wrapped by the site key.

    Any number of threads and processes may use the same vault; the first to see a patient
    decides the key and the others read it.
    """

    def __init__(self, url_or_path: str | Path, site_key: bytes, entropy: Entropy) -> None:
        exactly(KEY_BYTES, site_key, "the site key")
        self._wrap = AESGCM(mac(site_key, b"vault/wrap/v1"))
        self._lookup_key = mac(site_key, b"vault/lookup/v1")
        self._entropy = entropy
        self._engine = _engine(url_or_path)
        self._create(mac(site_key, b"vault/check/v1"))

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def subject(self, issuer: str | None, patient_id: str) -> Subject:
        """Return the subject of (issuer, PatientID), creating its key on first sight.

        Both are compared after trimming spaces. An erased patient who comes back gets a new,
        unrelated key; ``suppressed`` still answers yes. Raises VaultError without PatientID.
        """
        return self._get_or_create(self._patient_lookup(issuer, patient_id))

    def known(self, issuer: str | None, patient_id: str) -> Subject | None:
        """Return the subject of (issuer, PatientID) if there is one; makes none."""
        return self._known(self._patient_lookup(issuer, patient_id))

    def known_unidentified(self, study_instance_uid: str) -> Subject | None:
        """Return the subject of a study that has no PatientID if there is one; makes none."""
        return self._known(self._study_lookup(study_instance_uid))

    def unidentified(self, study_instance_uid: str) -> Subject:
        """Return the subject of a study that has no PatientID: one key per study."""
        return self._get_or_create(self._study_lookup(study_instance_uid))

    def study(self, subject_ref: str, study_instance_uid: str) -> StudyKey:
        """Return K_s of one study of this subject. Raises UnknownSubject, SubjectErased."""
        if not study_instance_uid:
            raise VaultError("a study key needs the StudyInstanceUID")
        return StudyKey(mac(self._key(subject_ref), b"study/v1\0", text_bytes(study_instance_uid)))

    def commit(self, subject_ref: str, document: bytes) -> bytes:
        """Return a commitment to a document of this subject that belongs to no single study.

        HMAC(K_p, "doc/v1\\0" ‖ SHA-256(document)): the consent commitment of a leaf.
        """
        return mac(self._key(subject_ref), b"doc/v1\0", hashlib.sha256(document).digest())

    def seal(self, subject_ref: str, plaintext: bytes) -> bytes:
        """Encrypt a document of this subject with AES-256-GCM under a key derived from K_p."""
        nonce = self._entropy(_NONCE_BYTES)
        sealer = AESGCM(mac(self._key(subject_ref), b"seal/v1\0"))
        return _SEALED + nonce + sealer.encrypt(nonce, plaintext, _SEALED)

    def open(self, subject_ref: str, sealed: bytes) -> bytes:
        """Return what ``seal`` was given. Raises VaultError if it was altered or is another's."""
        head, nonce, body = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if head != _SEALED or len(nonce) != _NONCE_BYTES:
            raise VaultError("a sealed document has an unknown form")
        opener = AESGCM(mac(self._key(subject_ref), b"seal/v1\0"))
        try:
            return opener.decrypt(nonce, body, _SEALED)
        except InvalidTag as error:
            raise VaultError("a sealed document was altered or belongs to another key") from error

    def destroy(self, subject_ref: str) -> str:
        """Destroy K_p and leave a suppression row behind; return the alias that lost its meaning.

        The row is overwritten in place, the write-ahead log emptied, the link from the patient
        to the row cut. Doing it again is harmless and returns the same alias.
        """
        with self._engine.begin() as connection:
            row = self._row(connection, subject_ref)
            if row.lookup is not None:
                insert = _insert_or_ignore(self._engine, _suppressions)
                connection.execute(insert, {"lookup": row.lookup})
                connection.execute(
                    sa.update(_subjects)
                    .where(_subjects.c.ref == subject_ref)
                    .values(lookup=None, wrapped=bytes(len(row.wrapped)))
                )
        self._forget_old_pages()
        return str(row.alias)

    def alias(self, subject_ref: str) -> str:
        """Return a subject's name in leaves, also of an erased one. Raises UnknownSubject."""
        return str(self._find(subject_ref).alias)

    def erased(self, subject_ref: str) -> bool:
        """Say whether this subject's key was destroyed. Raises UnknownSubject."""
        return self._find(subject_ref).lookup is None

    def suppressed(self, issuer: str | None, patient_id: str) -> bool:
        """Say whether this patient was erased and has not consented since."""
        return self._is_suppressed(self._patient_lookup(issuer, patient_id))

    def suppressed_unidentified(self, study_instance_uid: str) -> bool:
        """Say whether this study without PatientID was erased."""
        return self._is_suppressed(self._study_lookup(study_instance_uid))

    def lift(self, issuer: str | None, patient_id: str) -> bool:
        """Remove the suppression because there is new consent; say whether there was one."""
        lookup = self._patient_lookup(issuer, patient_id)
        gone = sa.delete(_suppressions).where(_suppressions.c.lookup == lookup)
        with self._engine.begin() as connection:
            return bool(connection.execute(gone).rowcount)

    def _create(self, check: bytes) -> None:
        insert = _insert_or_ignore(self._engine, _facts)
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": _SCHEMA_LOCK})
            for table in _metadata.sorted_tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            connection.execute(insert, {"name": "site-key-check", "value": check})
            stored = connection.execute(
                sa.select(_facts.c.value).where(_facts.c.name == "site-key-check")
            ).scalar_one()
        if not hmac.compare_digest(bytes(stored), check):
            raise VaultError("this vault was made with another site key; restore keys/site.key")

    def _get_or_create(self, lookup: bytes) -> Subject:
        while (found := self._known(lookup)) is None:
            fresh = self._fresh(lookup)
            with self._engine.begin() as connection:
                connection.execute(_insert_or_ignore(self._engine, _subjects), fresh)
        return found

    def _known(self, lookup: bytes) -> Subject | None:
        find = sa.select(_subjects.c.ref, _subjects.c.alias).where(_subjects.c.lookup == lookup)
        with self._engine.connect() as connection:
            row = connection.execute(find).one_or_none()
        return None if row is None else Subject(ref=row.ref, alias=row.alias)

    def _fresh(self, lookup: bytes) -> dict[str, object]:
        key = exactly(KEY_BYTES, self._entropy(KEY_BYTES), "the entropy source")
        ref, nonce = self._entropy(16).hex(), self._entropy(_NONCE_BYTES)
        alias = subject_alias(key)
        wrapped = nonce + self._wrap.encrypt(nonce, key, _bound(ref, alias))
        return {"ref": ref, "lookup": lookup, "alias": alias, "wrapped": wrapped}

    def _key(self, subject_ref: str) -> bytes:
        row = self._find(subject_ref)
        if row.lookup is None:
            raise SubjectErased("this patient's key was destroyed on request")
        wrapped = bytes(row.wrapped)
        try:
            return self._wrap.decrypt(
                wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _bound(row.ref, row.alias)
            )
        except InvalidTag as error:
            raise VaultError("a row of the vault is damaged; restore the vault") from error

    def _find(self, subject_ref: str) -> sa.Row[Any]:
        with self._engine.connect() as connection:
            return self._row(connection, subject_ref)

    def _row(self, connection: sa.Connection, subject_ref: str) -> sa.Row[Any]:
        find = sa.select(_subjects).where(_subjects.c.ref == subject_ref)
        row = connection.execute(find).one_or_none()
        if row is None:
            raise UnknownSubject("the vault holds no such subject")
        return row

    def _is_suppressed(self, lookup: bytes) -> bool:
        find = sa.select(sa.literal(1)).where(_suppressions.c.lookup == lookup)
        with self._engine.connect() as connection:
            return connection.execute(find).one_or_none() is not None

    def _patient_lookup(self, issuer: str | None, patient_id: str) -> bytes:
        """HMAC over the length-prefixed pair, so that no two pairs read the same."""
        who, name = text_bytes(_trim(issuer or "")), text_bytes(_trim(patient_id))
        if not name:
            raise VaultError("without a PatientID the study itself is the subject")
        return mac(self._lookup_key, b"patient/v1\0", struct.pack(">I", len(who)), who, name)

    def _study_lookup(self, study_instance_uid: str) -> bytes:
        if not study_instance_uid:
            raise VaultError("a subject needs a PatientID or a StudyInstanceUID")
        return mac(self._lookup_key, b"study/v1\0", text_bytes(study_instance_uid))

    def _forget_old_pages(self) -> None:
        """Empty what still holds the overwritten row: SQLite's log, PostgreSQL's dead rows."""
        autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        on_sqlite = self._engine.dialect.name == "sqlite"
        act = "PRAGMA wal_checkpoint(TRUNCATE)" if on_sqlite else "VACUUM FULL vault_subject"
        with autocommit.connect() as connection:
            done = connection.execute(sa.text(act))
            if on_sqlite and done.one()[0] != 0:
                raise VaultError("the key is destroyed but the vault's log is busy; erase again")


def _trim(text: str) -> str:
    """Drop DICOM's padding: leading and trailing spaces and NULs say nothing."""
    return text.strip(" \0")


def _bound(ref: str, alias: str) -> bytes:
    return f"vault/row/v1\0{ref}\0{alias}".encode("ascii")


def _insert_or_ignore(engine: sa.Engine, table: sa.Table) -> Any:
    dialect = sqlite if engine.dialect.name == "sqlite" else postgresql
    return dialect.insert(table).on_conflict_do_nothing()


def _engine(url_or_path: str | Path) -> sa.Engine:
    if isinstance(url_or_path, str) and "://" in url_or_path:
        url = sa.make_url(url_or_path)
    else:
        url = sa.URL.create("sqlite", database=str(url_or_path))
    engine = sa.create_engine(url, hide_parameters=True)
    if url.get_backend_name() == "sqlite":
        if not url.database:
            raise VaultError("the vault needs a file")
        os.close(os.open(url.database, os.O_CREAT | os.O_RDWR, 0o600))
        sa.event.listen(engine, "connect", _careful)
    return engine


def _careful(connection: Any, _record: object) -> None:
    for pragma in ("busy_timeout=15000", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("PRAGMA secure_delete=ON")
