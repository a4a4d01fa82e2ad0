"""Who may do what: roles and permissions in one table, tokens, one-time links, sessions.

Pure: no clock, no randomness of its own, no database. Time is an argument, entropy is given to
`Access`, and the rows live behind the small protocol `Doors`. Secrets are 32 random bytes with the
prefix ``rs_`` and are stored only as SHA-256; a secret is shown once, to the person who asked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

PREFIX = "rs_"
SECRET_BYTES = 32
LOGIN_LIFE = timedelta(minutes=5)
SESSION_LIFE = timedelta(hours=12)
SESSION_IDLE = timedelta(minutes=60)
_TOUCH_EVERY = timedelta(minutes=1)


class Role(StrEnum):
    """The seven roles; they are fixed in code."""

    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    RADIOLOGIST = "radiologist"
    VENDOR = "vendor"
    APPROVER = "approver"
    AUDITOR = "auditor"
    PATIENT = "patient"


class Permission(StrEnum):
    """What a route asks for; each route names exactly one."""

    HEALTH = "health"
    SIGN_IN = "sign-in"
    SIGN_OUT = "sign-out"
    CHECKPOINT_READ = "ledger.checkpoint"
    TILES_READ = "ledger.tiles"
    ENTRIES_READ = "ledger.entries"
    LOG_READ = "ledger.read"
    WITNESS_SUBMIT = "witness.submit"
    WITNESS_READ = "witness.read"
    STUDIES_READ = "studies.read"
    STUDIES_OPERATE = "studies.operate"
    PATIENTS_SEARCH = "patients.search"
    IDENTITY_READ = "identity.read"
    RECEIPTS_READ = "receipts.read"
    METRICS_READ = "metrics.read"
    DOCS_READ = "docs.read"
    MODELS_READ = "models.read"
    MODELS_PUSH = "models.push"


_P = Permission
_ANYONE = frozenset(
    # The witness's two: their routes exist only where a witness is configured; a log's signature
    # authorises what is submitted, and what is shown are checkpoints.
    {_P.HEALTH, _P.SIGN_IN, _P.CHECKPOINT_READ, _P.WITNESS_SUBMIT, _P.WITNESS_READ}
)
_LOG = frozenset({_P.TILES_READ, _P.ENTRIES_READ})
_SIGNED_IN = _ANYONE | {_P.SIGN_OUT}

GRANTS: dict[Role, frozenset[Permission]] = {
    Role.ADMINISTRATOR: frozenset(Permission),
    Role.OPERATOR: _SIGNED_IN
    | {
        _P.STUDIES_READ,
        _P.STUDIES_OPERATE,
        _P.LOG_READ,
        _P.PATIENTS_SEARCH,
        _P.IDENTITY_READ,
        _P.RECEIPTS_READ,
        _P.METRICS_READ,
        _P.DOCS_READ,
        _P.MODELS_READ,
    },
    Role.RADIOLOGIST: _SIGNED_IN
    | {_P.STUDIES_READ, _P.PATIENTS_SEARCH, _P.IDENTITY_READ, _P.RECEIPTS_READ},
    Role.AUDITOR: _SIGNED_IN
    | _LOG
    | {
        _P.LOG_READ,
        _P.STUDIES_READ,
        _P.PATIENTS_SEARCH,
        _P.RECEIPTS_READ,
        _P.DOCS_READ,
        _P.MODELS_READ,
    },
    Role.VENDOR: _SIGNED_IN | {_P.DOCS_READ, _P.MODELS_READ, _P.MODELS_PUSH},
    Role.APPROVER: _SIGNED_IN | {_P.DOCS_READ, _P.MODELS_READ},
    Role.PATIENT: _SIGNED_IN,
}
"""The one table. An auditor reads every study but sees no names: IDENTITY_READ is not his.

A vendor's name is the one that its packages name (`identity.vendor`); it reads its own models.
"""

_PUBLIC: dict[str, frozenset[Permission]] = {
    "checkpoint": _ANYONE,
    "tiles": _ANYONE | {_P.TILES_READ},
    "entries": _ANYONE | _LOG,
}


class AccessError(ValueError):
    """A secret that is unknown, used up or too old. The text never repeats the secret."""


@dataclass(frozen=True)
class Principal:
    """Somebody at the door: `name` for records, `role` None for an anonymous caller.

    `via` is "nobody", "token" or "session"; `csrf` is set for sessions only.
    """

    name: str
    role: Role | None
    grants: frozenset[Permission]
    via: str
    csrf: str | None = None

    @property
    def vendor(self) -> str | None:
        """The vendor that this is, None for everybody else."""
        return self.name if self.role is Role.VENDOR else None

    def may(self, permission: Permission) -> bool:
        """Say whether this person holds `permission`."""
        return permission in self.grants


@dataclass(frozen=True)
class TokenRow:
    """A machine's key as stored: the digest of the secret, never the secret."""

    digest: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True)
class LoginRow:
    """A one-time sign-in link as stored."""

    digest: str
    name: str
    role: Role
    expires_at: datetime


@dataclass(frozen=True)
class SessionRow:
    """A browser's session as stored; `seen_at` moves at most once a minute.

    `token` is the digest of the token it was opened with, None for a one-time link: a session
    dies with its token.
    """

    digest: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime
    seen_at: datetime
    token: str | None = None


class Doors(Protocol):
    """The rows behind the doors; bridge.store keeps them. All times are aware UTC."""

    def add_token(self, row: TokenRow) -> None:
        """Keep a token; a second row of the same name replaces nothing, names may repeat."""

    def token(self, digest: str) -> TokenRow | None:
        """Find a token by its digest, revoked and expired ones included."""

    def add_login(self, row: LoginRow) -> None:
        """Keep a one-time link."""

    def take_login(self, digest: str) -> LoginRow | None:
        """Remove the link and return it, in one transaction: of two callers one gets None."""

    def add_session(self, row: SessionRow) -> None:
        """Keep a session."""

    def session(self, digest: str) -> SessionRow | None:
        """Find a session by its digest, expired ones included."""

    def touch_session(self, digest: str, seen_at: datetime) -> None:
        """Write when the session was last used."""

    def end_session(self, digest: str) -> None:
        """Remove the session; unknown digests are no error."""


@dataclass(frozen=True)
class Opened:
    """A session just opened: the cookie's secret and whose it is."""

    secret: str
    principal: Principal
    expires_at: datetime


def digest_of(secret: str) -> str:
    """Return the stored form of a secret: SHA-256 in hex of its UTF-8 text."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def csrf_of(secret: str) -> str:
    """Derive a session's CSRF token: HMAC-SHA256 keyed by the session secret, in hex."""
    return hmac.new(secret.encode(), b"radseal/csrf/v1", hashlib.sha256).hexdigest()


def csrf_matches(principal: Principal, given: str | None) -> bool:
    """Compare in constant time; a session always needs it, a token never does."""
    if principal.csrf is None:
        return principal.via == "token"
    return given is not None and hmac.compare_digest(principal.csrf.encode(), given.encode())


def anonymous(public: str) -> Principal:
    """Return the nobody at the door. `public` is [ledger] public: checkpoint, tiles or entries."""
    return Principal("anonymous", None, _PUBLIC[public], "nobody")


class Access:
    """Issues and checks secrets over `doors`; `entropy(n)` returns n random bytes."""

    def __init__(self, doors: Doors, entropy: Callable[[int], bytes]) -> None:
        self._doors = doors
        self._entropy = entropy

    def issue_token(
        self, name: str, role: Role, now: datetime, expires_at: datetime | None = None
    ) -> str:
        """Make a token for `name`; the returned text is shown once and kept nowhere."""
        secret = self._secret()
        self._doors.add_token(TokenRow(digest_of(secret), name, role, now, expires_at))
        return secret

    def login_secret(self, name: str, role: Role, now: datetime) -> str:
        """Make the secret of a one-time link, good for five minutes and one exchange."""
        secret = self._secret()
        self._doors.add_login(LoginRow(digest_of(secret), name, role, now + LOGIN_LIFE))
        return secret

    def sign_in(self, secret: str, now: datetime) -> Opened:
        """Turn a one-time secret, or a token, into a session; AccessError if neither holds."""
        digest = digest_of(secret)
        link = self._doors.take_login(digest) if _looks_right(secret) else None
        if link is not None and link.expires_at > now:
            return self._open(link.name, link.role, now, None)
        token = self._valid_token(digest, now) if _looks_right(secret) else None
        if token is not None:
            return self._open(token.name, token.role, now, digest)
        raise AccessError("this sign-in link was already used, or is older than five minutes")

    def by_token(self, secret: str, now: datetime) -> Principal:
        """Return who holds this token; AccessError if unknown, revoked or expired."""
        row = self._valid_token(digest_of(secret), now) if _looks_right(secret) else None
        if row is None:
            raise AccessError("this token is not known here, was revoked or has expired")
        return Principal(row.name, row.role, GRANTS[row.role], "token")

    def by_session(self, secret: str, now: datetime) -> Principal | None:
        """Return whose session this is, None once it is over (12 h, or 60 min unused)."""
        digest = digest_of(secret)
        row = self._doors.session(digest) if _looks_right(secret) else None
        if row is None:
            return None
        over = row.expires_at <= now or row.seen_at + SESSION_IDLE <= now
        if over or (row.token is not None and self._valid_token(row.token, now) is None):
            self._doors.end_session(digest)
            return None
        if now - row.seen_at >= _TOUCH_EVERY:
            self._doors.touch_session(digest, now)
        return _in_session(row.name, row.role, secret)

    def end(self, secret: str) -> None:
        """Close a session."""
        self._doors.end_session(digest_of(secret))

    def _open(self, name: str, role: Role, now: datetime, token: str | None) -> Opened:
        secret = self._secret()
        until = now + SESSION_LIFE
        self._doors.add_session(SessionRow(digest_of(secret), name, role, now, until, now, token))
        return Opened(secret, _in_session(name, role, secret), until)

    def _valid_token(self, digest: str, now: datetime) -> TokenRow | None:
        row = self._doors.token(digest)
        if row is None or row.revoked_at is not None:
            return None
        return None if row.expires_at is not None and row.expires_at <= now else row

    def _secret(self) -> str:
        raw = self._entropy(SECRET_BYTES)
        if len(raw) != SECRET_BYTES:
            raise ValueError(f"entropy returned {len(raw)} bytes instead of {SECRET_BYTES}")
        return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _looks_right(secret: str) -> bool:
    return secret.startswith(PREFIX) and len(secret) == len(PREFIX) + 43


def _in_session(name: str, role: Role, secret: str) -> Principal:
    return Principal(name, role, GRANTS[role], "session", csrf_of(secret))


_PERSON = re.compile(r"[^\W_][\w .@-]{0,59}")


def is_person(text: str) -> bool:
    """Whether a leaf may name somebody so: letters, digits, space . @ -, at most 60."""
    return _PERSON.fullmatch(text) is not None


def is_same_person(one: str, other: str) -> bool:
    """Whether two asserted names are one person's, however they are written."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    # NFKC: a full-width A is an A, and so is what a keyboard composes of two characters.
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
