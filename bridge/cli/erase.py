"""The command `radseal erase`: one person asks, a second confirms, then nothing is left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bridge import ambient
from bridge.cli.opened import JsonOption, SiteOption, opened, os_user, print_json, print_table
from bridge.erasure import erase
from bridge.errors import WrongUse
from bridge.rooms import Rooms
from bridge.store.erasure_requests import RequestRow

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("erase")(command)


def command(
    who: Annotated[
        str, typer.Argument(metavar="[-]", help="- reads ISSUER|ID from standard input.")
    ] = "",
    by: Annotated[str, typer.Option("--by", help="Who does this.")] = "",
    basis: Annotated[
        str, typer.Option(help="The law it rests on; stands in the ledger.")
    ] = erase.BASIS,
    study: Annotated[
        bool, typer.Option("--study", help="- reads a StudyInstanceUID that names no patient.")
    ] = False,
    confirm: Annotated[
        str, typer.Option(metavar="REQUEST", help="Confirm as a second person; it is done then.")
    ] = "",
    withdraw: Annotated[str, typer.Option(metavar="REQUEST", help="Take a request back.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="List the requests.")] = False,
    site: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """Erase a patient: one person asks (-), another confirms (--confirm REQUEST).

    Images, results, rows, consent documents and the patient's key go. The ledger stays and can
    still be verified; nobody can tell any more whom its leaves were about. The patient's next
    study is denied until there is new consent. What left the house before is listed.
    """
    if sum(map(bool, (who, confirm, withdraw, list_))) != 1:
        raise WrongUse("say one of: - (then ISSUER|ID on standard input), --confirm, --withdraw, "
                       "--list")  # fmt: skip
    if who not in {"", "-"}:
        raise WrongUse("a patient's id does not belong on a command line; write - and type it in")
    if (who or confirm) and not by:
        raise WrongUse("say who does this: --by NAME")
    named = sys.stdin.readline() if who else ""
    with opened(site) as rooms:
        if list_:
            _list(erase.requests(rooms), json_=json_)
        elif withdraw:
            erase.withdraw(rooms, withdraw)
            typer.echo(f"{withdraw} withdrawn")
        elif confirm:
            _done(erase.confirm(rooms, confirm, by=by, account=os_user()), json_=json_)
        else:
            _asked(rooms, named, by, basis, study=study, json_=json_)


def _asked(rooms: Rooms, named: str, by: str, basis: str, *, study: bool, json_: bool) -> None:
    whose = erase.named(rooms, named, study=study)
    row, found, gone = erase.request(
        rooms, whose, by=by, account=os_user(), basis=basis, new_id=ambient.new_id()[:12]
    )
    counts = {
        "studies": len(found.own), "shared": len(found.shared), "images": found.images,
        "results": len(found.artifacts), "documents": found.consents,
    }  # fmt: skip
    if json_:
        print_json({"request": row.id, "expires_at": row.expires_at, **counts,
                    "shared_studies": sorted(found.shared.values()),
                    "left": [asdict(one) for one in gone]})  # fmt: skip
        return
    typer.echo(row.id)
    typer.echo(_counted(counts), err=True)
    for uid in found.shared.values():
        typer.echo(
            f"study {uid} belongs to another identity: it stays, without this one's images and "
            "what was read from them; if it is the same person, erase that identity as well",
            err=True,
        )
    _left([asdict(one) for one in gone], err=True)
    typer.echo(
        f"until {row.expires_at:%Y-%m-%d %H:%M} UTC a second person can type: "
        f"radseal erase --confirm {row.id} --by NAME",
        err=True,
    )


def _done(row: RequestRow, *, json_: bool) -> None:
    if json_:
        print_json(_told(row))
        return
    typer.echo(f"{row.id} done: {_counted(row.report)}")
    _left(row.report.get("left", ()))
    typer.echo(
        "not within reach: results that left, copies in backups until they expire, archives of a "
        "PostgreSQL server's write-ahead log, blocks that a flash drive has not reused"
    )


def _counted(report: Any) -> str:
    return (
        f"{report.get('studies', 0)} studies, {report.get('images', 0)} images, "
        f"{report.get('results', 0)} results, {report.get('documents', 0)} consent documents; "
        f"{report.get('shared', 0)} studies of somebody else touched"
    )


def _left(gone: Sequence[Any], *, err: bool = False) -> None:
    for one in gone:
        what = one.get("sop_instance_uid") or f"{one.get('count', 1)} objects"
        typer.echo(f"left before, ask there: {one['destination']}: {one['kind']} {what}", err=err)


def _told(row: RequestRow) -> dict[str, Any]:
    return {
        "request": row.id, "state": str(row.state), "basis": row.basis,
        "requested_by": row.requested_by, "requested_at": row.requested_at,
        "expires_at": row.expires_at, "confirmed_by": row.confirmed_by,
        "confirmed_at": row.confirmed_at, "done_at": row.done_at, "leaf": row.leaf,
        "report": row.report,
    }  # fmt: skip


def _list(rows: Sequence[RequestRow], *, json_: bool) -> None:
    if json_:
        print_json([_told(row) for row in rows])
        return
    print_table(
        ["request", "state", "asked by", "at", "confirmed by", "basis"],
        [[r.id, str(r.state), r.requested_by, f"{r.requested_at:%Y-%m-%d %H:%M}",
          r.confirmed_by or "", r.basis] for r in rows],
        "nobody has asked for an erasure",
    )  # fmt: skip
