"""Commands about consent documents: add, list, withdraw, and check offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bridge import grant
from bridge.cli.opened import JsonOption, SiteOption, opened, os_user, print_json, print_table
from bridge.consent.document import Document, parse
from bridge.consent.evaluate import decide
from bridge.consent.policy import POLICIES
from bridge.consent.request import Request
from bridge.consent.tree import ConsentError
from bridge.errors import NotFound, Refused, WrongUse
from bridge.store import catalog
from bridge.store.database import reading

__all__ = ["app"]

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
            identity = grant.keep(rooms, data, document, named, by=os_user())
            typer.echo(f"{identity}  {path.name}")
            if document.unusable is not None:
                typer.echo(
                    f"{path.name}: kept, but it cannot be evaluated ({document.unusable}): it "
                    "permits nothing, and the site's policy decides",
                    err=True,
                )


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
        grant.withdraw(rooms, identity)
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
