"""Commands about consent documents: add, list, withdraw, and check offline."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient
from bridge.cli.opened import JsonOption, SiteOption, opened, os_user, print_json, print_table
from bridge.consent.document import Document, parse
from bridge.consent.evaluate import decide
from bridge.consent.policy import POLICIES
from bridge.consent.request import Request
from bridge.consent.tree import ConsentError
from bridge.errors import NotFound, Refused, WrongUse
from bridge.rooms import Rooms
from bridge.store import catalog
from bridge.store.catalog import ConsentRow
from bridge.store.database import reading, writing

__all__ = ["add_document", "app"]

app = typer.Typer(no_args_is_help=True, help="What patients allowed: FHIR Consent documents.")


def _document(path: Path) -> tuple[bytes, Document]:
    try:
        data = path.read_bytes()
        return data, parse(data)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None
    except ConsentError as error:
        raise Refused(f"{path.name}: {error}") from None


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="FHIR R4 Consent documents, JSON.")],
    patient: Annotated[
        str, typer.Option(help="- reads ISSUER|ID from standard input.", metavar="-")
    ] = "",
    site: SiteOption = None,
) -> None:
    """Keep a patient's consent; it is encrypted under the patient's key and is a leaf."""
    if patient not in {"", "-"}:
        raise WrongUse("a patient's id does not belong on a command line; use --patient - ")
    named = sys.stdin.readline().strip() if patient == "-" else None
    with opened(site) as rooms:
        for path in files:
            data, document = _document(path)
            typer.echo(f"{add_document(rooms, data, document, named)}  {path.name}")
            if document.unusable is not None:
                typer.echo(
                    f"{path.name}: kept, but it cannot be evaluated ({document.unusable}): it "
                    "permits nothing, and the site's policy decides",
                    err=True,
                )


def add_document(rooms: Rooms, data: bytes, document: Document, named: str | None) -> str:
    """Keep one document; returns its id. `named` is ISSUER|ID where it names no patient."""
    issuer, patient_id = _whose(rooms, document, named)
    subject = rooms.vault.subject(issuer, patient_id)
    identity = hashlib.sha256(subject.ref.encode() + data).hexdigest()[:32]
    leaf = rooms.record.say(
        "consent.granted", f"consent/{identity}/granted",
        {
            "document": rooms.record.text(rooms.vault.commit(subject.ref, data)),
            "status": document.status, "source": "fhir", "recorder": os_user(),
        },
        subject=subject.alias,
    )  # fmt: skip
    with writing(rooms.database) as connection:
        catalog.add_consent(
            connection,
            ConsentRow(identity, subject.ref, document.status,
                       rooms.vault.seal(subject.ref, data), leaf, ambient.now(), None),
        )  # fmt: skip
    rooms.vault.lift(issuer, patient_id)
    return identity


def _whose(rooms: Rooms, document: Document, named: str | None) -> tuple[str, str]:
    patients = rooms.site.patients
    if named is not None:
        issuer, bar, patient_id = named.rpartition("|")
        if not patient_id:
            raise WrongUse("write ISSUER|ID on standard input")
        return (issuer if bar else patients.issuer), patient_id
    identifier = document.identifier()
    if identifier is None:
        raise Refused(
            "the document names its patient by reference only; say who it is with --patient -"
        )
    system, value = identifier
    if system != patients.issuer_system:
        raise Refused(
            "the document's patient.identifier.system is not [patients] issuer_system of this "
            "site; set it in site.toml, or say who it is with --patient -"
        )
    return patients.issuer, value


@app.command("list")
def list_documents(site: SiteOption = None, json_: JsonOption = False) -> None:
    """List the documents kept, without naming patients."""
    with opened(site) as rooms, reading(rooms.database) as connection:
        rows = catalog.list_consents(connection)
    if json_:
        print_json([
            {"id": r.id, "status": r.status, "added_at": r.added_at,
             "withdrawn_at": r.withdrawn_at, "leaf": r.leaf}
            for r in rows
        ])  # fmt: skip
        return
    print_table(
        ["id", "status", "added", "withdrawn"],
        [
            [r.id, r.status, f"{r.added_at:%Y-%m-%d %H:%M}",
             f"{r.withdrawn_at:%Y-%m-%d %H:%M}" if r.withdrawn_at else ""]
            for r in rows
        ],
        "no consent document is kept; the site's policy decides",
    )  # fmt: skip


@app.command()
def withdraw(
    identity: Annotated[str, typer.Argument(metavar="ID", help="From `consent list`.")],
    site: SiteOption = None,
) -> None:
    """Say that a document no longer holds; what is queued is asked again before it is used."""
    with opened(site) as rooms:
        with reading(rooms.database) as connection:
            row = catalog.consent(connection, identity)
        if row is None:
            raise NotFound("no such document; see `radseal consent list`")
        if row.withdrawn_at is not None:
            raise Refused("this document was withdrawn already")
        data = rooms.vault.open(row.subject_ref, row.sealed)
        rooms.record.say(
            "consent.withdrawn", f"consent/{identity}/withdrawn",
            {"document": rooms.record.text(rooms.vault.commit(row.subject_ref, data))},
            subject=rooms.vault.alias(row.subject_ref),
            refs=[("consent.granted", row.leaf or "")],
        )  # fmt: skip
        with writing(rooms.database) as connection:
            catalog.withdraw_consent(connection, identity, ambient.now())
    typer.echo(f"{identity} withdrawn")


@app.command()
def check(
    documents: Annotated[list[Path], typer.Argument(help="FHIR Consent documents, JSON.")],
    request: Annotated[Path, typer.Option(help="The question: purpose, actors, at, data.")],
    policy: Annotated[str | None, typer.Option(help="; ".join(sorted(POLICIES)))] = None,
    json_: JsonOption = False,
) -> None:
    """Decide a request offline; without --policy the documents alone decide."""
    if policy is not None and policy not in POLICIES:
        raise WrongUse(f"no policy is called {policy}; there are {', '.join(sorted(POLICIES))}")
    try:
        question = Request.from_json(request.read_bytes())
    except OSError as error:
        raise WrongUse(f"{request} cannot be read: {error.strerror}") from None
    except ConsentError as error:
        raise WrongUse(f"{request.name}: {error}") from None
    parsed = [_document(path)[1] for path in documents]
    decision = decide(question, parsed, POLICIES[policy] if policy else None)
    if json_:
        print_json(decision.to_json())
    else:
        typer.echo(f"{decision.decision}: {decision.words}")
