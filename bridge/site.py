"""Settings: `site.toml` and the environment, read once, frozen, unknown keys refused.

The only room that reads the environment. Every key has a default but `name` and
`origin`; `RADSEAL_LISTENER__PORT=…` overrides `[listener] port`.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as NotJSONError

from bridge.consent.purposes import act_reason, ancestors
from bridge.errors import SettingsError
from bridge.study import AETitle

__all__ = ["Completion", "Destination", "Site", "Source", "find_folder", "read", "renamed"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_ORIGIN_LINE = re.compile(r"""^(\s*origin\s*=\s*)(?:"[^"\n]*"|'[^'\n]*')""", re.MULTILINE)
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~/-]{0,199}")


def _ae_title(text: str) -> str:
    return str(AETitle(text))


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise ValueError("use lower case letters, digits, - and _, at most 40")
    return text


def _origin(text: str) -> str:
    if _ORIGIN.fullmatch(text) is None or text.endswith("/"):
        raise ValueError("write it as host/path without a scheme and without a final slash")
    return text


def _purpose(text: str) -> str:
    purpose, care = act_reason(text), act_reason("TREAT")
    if care not in (purpose, *ancestors(purpose)):
        raise ValueError("use TREAT or a purpose below it, such as TREATDS")
    return text


AETitleText = Annotated[str, AfterValidator(_ae_title)]
NameText = Annotated[str, AfterValidator(_name)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listener(_Table):
    """[listener]: the DICOM C-STORE SCP."""

    ae_title: AETitleText = "RADSEAL"
    host: str = "0.0.0.0"  # noqa: S104 - a PACS is another machine; [[sources]] decides who may
    port: Port = 11112
    accept: Literal["listed", "any"] = "listed"
    processes: Annotated[int, Field(ge=1, le=16)] = 1
    fast: bool = True

    @model_validator(mode="after")
    def _later(self) -> Listener:
        if self.processes != 1:
            raise ValueError("processes: one listener process in this release; set it to 1")
        return self


class Http(_Table):
    """[http]: pages and API, on loopback unless said otherwise."""

    host: str = "127.0.0.1"
    port: Port = 8080


class Completion(_Table):
    """[completion]: when a study's input is called complete (design §4a)."""

    quiet_seconds: Seconds = 30
    settle_seconds: Seconds = 5
    max_wait_seconds: Seconds = 3600


class Database(_Table):
    """[database]: SQLite beside site.toml, or PostgreSQL by URL."""

    url: str = "sqlite:///state.db"

    @model_validator(mode="after")
    def _known(self) -> Database:
        if not self.url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("url: use sqlite:///state.db or postgresql+psycopg://…")
        return self


class Storage(_Table):
    """[storage]: where received instances lie."""

    url: str = "file:instances"
    watermark_mb: Annotated[int, Field(ge=0)] = 512

    @model_validator(mode="after")
    def _known(self) -> Storage:
        if not self.url.startswith("file:"):
            raise ValueError("url: only file:FOLDER works in this release; S3 comes later")
        return self


class Patients(_Table):
    """[patients]: whose numbers the PatientIDs are."""

    issuer: str = ""
    issuer_system: str = ""


class Vault(_Table):
    """[vault]: how long copies of the patients' keys live, which an erasure cannot reach."""

    backup_days: Annotated[int, Field(ge=0, le=36500)] | None = None


class Consent(_Table):
    """[consent]: what is asked before inference, and what holds where no document speaks."""

    purpose: Annotated[str, AfterValidator(_purpose)] = "TREATDS"
    unidentified: Literal["deny", "permit"] = "deny"
    policy: Literal["opt-out-treatment", "opt-in-all", "break-glass-only", "deny-all"] = (
        "opt-out-treatment"
    )


class Models(_Table):
    """[models]: the largest package, how many persons approve it, whether acts are signed."""

    max_package_mb: Annotated[int, Field(ge=1, le=65536)] = 4096
    approvals: Annotated[int, Field(ge=1, le=9)] = 1
    proven: bool = False
    trial: bool = False


class Ledger(_Table):
    """[ledger]: what an anonymous reader may fetch of the log, and who witnesses it.

    What the lines of `witnesses` say is read by `bridge.quorum`: the listener's process, which
    reads settings too, stays without the ledger.
    """

    public: Literal["checkpoint", "tiles", "entries"] = "checkpoint"
    witnesses: tuple[str, ...] = ()
    witness_lag_minutes: Annotated[float, Field(gt=0, le=14 * 1440, allow_inf_nan=False)] = 60


class Witness(_Table):
    """[witness]: this site cosigns the logs of others, by the keys and record in `folder`."""

    folder: str = ""


class Source(_Table):
    """[[sources]]: who may send, and who can be asked for counts."""

    name: NameText
    ae_title: AETitleText
    host: str = ""
    port: Port | None = None
    query: bool = False
    ask: str = ""
    issuer: str = ""

    @model_validator(mode="after")
    def _askable(self) -> Source:
        if self.query and (not self.host or self.port is None):
            raise ValueError("query = true needs host and port")
        return self


class Destination(_Table):
    """[[destinations]]: where results go, and which objects each wants."""

    name: NameText
    kind: Literal["dicom"] = "dicom"
    ae_title: AETitleText
    host: str
    port: Port
    send: tuple[Literal["sr", "seg", "summary"], ...] = ("sr", "seg", "summary")
    partial: bool = False
    commitment: bool = False

    @model_validator(mode="after")
    def _later(self) -> Destination:
        if self.commitment:
            raise ValueError(
                "commitment = true: storage commitment comes with the results release; "
                "set it to false, deliveries then end as stored"
            )
        return self


class Site(BaseSettings):
    """One installation. Paths are relative to `folder`, where site.toml lies."""

    model_config = SettingsConfigDict(
        env_prefix="RADSEAL_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    folder: Path
    name: str
    origin: Annotated[str, AfterValidator(_origin)]
    listener: Listener = Listener()
    http: Http = Http()
    completion: Completion = Completion()
    database: Database = Database()
    storage: Storage = Storage()
    patients: Patients = Patients()
    vault: Vault = Vault()
    consent: Consent = Consent()
    models: Models = Models()
    ledger: Ledger = Ledger()
    witness: Witness = Witness()
    sources: tuple[Source, ...] = ()
    destinations: tuple[Destination, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Site:
        for what, names in (
            ("sources", [s.name for s in self.sources]),
            ("destinations", [d.name for d in self.destinations]),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what}: the name {name!r} is used twice")
        known = {s.name for s in self.sources}
        for source in self.sources:
            if source.ask and source.ask not in known:
                raise ValueError(
                    f"sources: {source.name!r} asks {source.ask!r}, which is not there"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over site.toml."""
        return env_settings, init_settings

    @property
    def database_url(self) -> str:
        """The database's URL with an absolute path for SQLite."""
        prefix = "sqlite:///"
        if self.database.url.startswith(prefix):
            return prefix + str(self.folder / self.database.url.removeprefix(prefix))
        return self.database.url

    @property
    def on_postgresql(self) -> bool:
        """Whether the tables live in PostgreSQL."""
        return self.database.url.startswith("postgresql")

    @property
    def instances(self) -> Path:
        """Folder of received instances."""
        return self.folder / self.storage.url.removeprefix("file:")

    @property
    def witness_folder(self) -> Path | None:
        """Folder of the witness that this site is for others, None where it is none."""
        return self.folder / self.witness.folder if self.witness.folder else None

    def source_of(self, ae_title: str) -> Source | None:
        """Find the source with this calling AE title."""
        return next((s for s in self.sources if s.ae_title == ae_title.strip()), None)

    def askable(self, ae_title: str) -> Source | None:
        """Find who can be asked for counts about studies from this AE title."""
        source = self.source_of(ae_title)
        if source is not None and source.ask:
            source = next(s for s in self.sources if s.name == source.ask)
        return source if source is not None and source.query else None

    def issuer_of(self, ae_title: str) -> str:
        """Whose numbers this source's PatientIDs are, where (0010,0021) is absent."""
        source = self.source_of(ae_title)
        return (source.issuer if source is not None else "") or self.patients.issuer


def renamed(settings: Site, origin: str) -> str:
    """Give the text of site.toml with another origin; nothing is written.

    Raises SettingsError where that cannot be done without guessing.
    """
    path = settings.folder / "site.toml"
    text = path.read_text(encoding="utf-8")
    try:
        _origin(origin)
    except ValueError as error:
        raise SettingsError(f"{origin!r} is no origin: {error}") from None
    made = _ORIGIN_LINE.sub(lambda found: f'{found[1]}"{origin}"', text, count=1)
    try:
        right = tomllib.loads(made) == {**tomllib.loads(text), "origin": origin}
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise SettingsError(f'{path}: origin: write it on a line of its own, origin = "host/path"')
    if tomllib.loads(text)["origin"] != settings.origin:
        raise SettingsError("RADSEAL_ORIGIN hides the origin of site.toml; unset it first")
    return made


def find_folder(given: Path | None) -> Path:
    """Give the site folder: as said, else $RADSEAL_SITE, else the current folder."""
    return (given or Path(os.environ.get("RADSEAL_SITE", "."))).resolve()


def read(folder: Path) -> Site:
    """Read `folder`/site.toml; raises SettingsError with one sentence that names key and fix."""
    path = folder / "site.toml"
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path} is not there; make a site with `radseal init DIR`, or say --site DIR"
        ) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}; check its owner") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    if "folder" in values:
        raise SettingsError(f"{path}: unknown key folder; remove it")
    for name in sorted(os.environ):
        table = name.removeprefix("RADSEAL_").partition("__")[0].lower()
        if name.startswith("RADSEAL_") and "__" in name and table not in Site.model_fields:
            raise SettingsError(f"{name}: site.toml has no table [{table}]; correct its spelling")
    if "RADSEAL_FOLDER" in os.environ:
        raise SettingsError("RADSEAL_FOLDER is no setting; use RADSEAL_SITE")
    try:
        return Site(folder=folder, **values)
    except ValidationError as error:
        raise SettingsError(_sentence(path, error)) from None
    except NotJSONError as error:
        raise SettingsError(f"environment: {error}; lists and tables are JSON there") from None


def _sentence(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    fixes = {
        "extra_forbidden": "unknown key; remove it or correct its spelling",
        "missing": "this key is required; add it",
    }
    said = fixes.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{path}: {key}: {said}"
