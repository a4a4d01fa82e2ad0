"""Commands about a site's models: trust, push, what people do with them, list."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient
from bridge.catalog import dates
from bridge.catalog.standing import alias, why_out
from bridge.cli.opened import (
    JsonOption,
    SiteOption,
    bytes_shown,
    opened,
    os_user,
    print_json,
    print_table,
)
from bridge.cli.package import Package, read_file
from bridge.errors import WrongUse
from bridge.peers import radseal
from bridge.rooms import Rooms
from bridge.scope import KEYS, read, words
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import reading
from models import archive, package
from models.registry import State

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="AI models: who delivers them, which ones run.")
Model = Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="The package's identity.id.")]
By = Annotated[str, typer.Option("--by", help="Who does this.")]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why, as one word for the ledger: worse-recall.")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="Your private key, PEM: the leaf then carries your signature."),
]
ScopeWords = Annotated[
    list[str] | None,
    typer.Option(
        "--scope",
        metavar="KEY=VALUE,...",
        help=f"Only studies with one of these values. Keys: {', '.join(KEYS)}. May be repeated.",
    ),
]


@app.command()
def trust(
    pem: Annotated[Path, typer.Argument(metavar="PEM", help="The public key.")],
    vendor: Annotated[
        str | None, typer.Option(help="Whose packages it signs, as they name the vendor.")
    ] = None,
    person: Annotated[
        str | None, typer.Option(help="Whose acts on models it signs: the name for --by.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="First day (UTC); default: now.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day (UTC); default: no end.")
    ] = None,
    site: SiteOption = None,
) -> None:
    """Trust a public key: of a vendor for its packages, or of a person for acts with --key."""
    if (vendor is None) == (person is None):
        raise WrongUse("say whose key it is: --vendor NAME or --person NAME")
    if person is not None and (since or until):
        raise WrongUse("--from and --until are for a vendor's key")
    first, last = _day(since), _day(until)
    after = None if last is None else last + timedelta(days=1)
    data = read_file(pem)
    with opened(site) as rooms:
        if vendor is None:
            digest = rooms.lifecycle.introduce(data, str(person), ambient.now())
            typer.echo(f"{person}'s key {digest[:16]} is trusted")
            return
        key = rooms.registrar.trust(data, vendor, ambient.now(), since=first, until=after)
    typer.echo(f"{vendor}'s key {key.key_sha256[:16]} is trusted {dates(key)}")


def _day(text: str | None) -> datetime | None:
    """Read a day as its first moment, UTC; raises WrongUse."""
    if text is None:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise WrongUse(f"{text[:32]} is no day; write it as 2027-01-31") from None


@app.command()
def untrust(
    key: Annotated[str, typer.Argument(metavar="KEY", help="First digits of the key's number.")],
    site: SiteOption = None,
) -> None:
    """Take no more packages signed with a key, from now on; models that it signed stay."""
    with opened(site) as rooms:
        found = rooms.registrar.untrust(key, ambient.now())
    typer.echo(
        f"{', '.join(k.vendor for k in found)}: key {found[0].key_sha256[:16]} is no longer "
        "trusted; its registered models stay, `radseal model retire MODEL` takes one out"
    )


@app.command()
def push(
    folder: Package,
    to: Annotated[str, typer.Option(help="Address of another site, as its HTTP side is.")] = "",
    token: Annotated[
        Path | None, typer.Option(help="File with the token that the other site gave you.")
    ] = None,
    site: SiteOption = None,
) -> None:
    """Verify, admit and register a package: here, or --to another site."""
    if bool(to) != (token is not None):
        raise WrongUse("--to URL and --token FILE go together")
    if to and token is not None:
        _push_away(folder.resolve(), to, read_file(token).decode("ascii", "replace").strip())
        return
    with opened(site) as rooms:
        row = rooms.registrar.push(
            folder.resolve(), ambient.now(), by=os_user(),
            progress=lambda what: typer.echo(f"checking {what}", err=True),
        )  # fmt: skip
    typer.echo(f"registered {row.id}@{row.version}, model {row.digest[:16]}; next: approve")


def _push_away(root: Path, url: str, secret: str) -> None:
    package.load(root)  # a fault is said here, before anything is sent
    with tempfile.TemporaryFile() as zipped:
        with bytes_shown("packing", None) as packed:
            archive.pack(root, Path(f"{root}.sig"), zipped, packed)
        size = zipped.tell()
        zipped.seek(0)
        with bytes_shown("sending, then the site looks at it", size) as sent:
            said = radseal.push(url, secret, zipped, size, sent)
    words = "registered" if said.new else f"registered before, now {said.state}"
    typer.echo(f"{words}: {said.id}@{said.version}, model {said.digest[:16]}")


def _act(
    model: str, act: str, by: str, site: Path | None, *, reason: str | None, key: Path | None,
    scope: list[str] | None = None,
) -> None:  # fmt: skip
    limits = read(scope or ())
    with opened(site) as rooms:
        _mend(rooms, model, act)
        row = rooms.lifecycle.act(
            model, act, ambient.now(), by=by, reason=reason, scope=limits, key=_read_key(key)
        )
    authn = row.acts[-1]["authn"]
    past = {"shadow": "made a shadow", "retire": "retired"}.get(act, f"{act}d")
    typer.echo(f"{row.id}@{row.version}: {past} by {by} ({authn}){_next(rooms, row, act)}")


def _next(rooms: Rooms, row: ModelRow, act: str) -> str:
    if act == "retire":
        return ""
    if act == "approve":
        if row.state == State.APPROVED:
            return ""
        rules = rooms.site.models
        return (
            f"; approved by {len(row.approvers(proven=rules.proven))} of {rules.approvals} persons"
        )
    where = words(row.scope) or "all studies"
    return f"; for {where}" + ("; nothing of it is delivered" if act == "shadow" else "")


def _mend(rooms: Rooms, model: str, act: str) -> None:
    """Run the self-test of a model that somebody puts to use: suspended, or not tested here."""
    with reading(rooms.database) as connection:
        row = next(iter(catalog.find_models(connection, model)), None)
    if row is None or act not in {"activate", "shadow"}:
        return
    untested = row.state == State.APPROVED and not rooms.fitness.passed(row)
    if untested or row.state == State.SUSPENDED:
        typer.echo(f"self-test: {rooms.fitness.test(row, ambient.now()).text}", err=True)


def _read_key(key: Path | None) -> bytes | None:
    return None if key is None else read_file(key)


@app.command()
def approve(
    model: Model, by: By, reason: Reason = None, key: Key = None, site: SiteOption = None
) -> None:
    """Approve a registered model; not by the person who registered it."""
    _act(model, "approve", by, site, reason=reason, key=key)


@app.command()
def activate(
    model: Model, by: By, scope: ScopeWords = None, reason: Reason = None, key: Key = None,
    site: SiteOption = None,
) -> None:  # fmt: skip
    """Put an approved model into routing: its results are delivered. It is `live` then."""
    _act(model, "activate", by, site, reason=reason, key=key, scope=scope)


@app.command()
def shadow(
    model: Model, by: By, scope: ScopeWords = None, reason: Reason = None, key: Key = None,
    site: SiteOption = None,
) -> None:  # fmt: skip
    """Let an approved model see live studies; nothing of it is delivered."""
    _act(model, "shadow", by, site, reason=reason, key=key, scope=scope)


@app.command()
def rollback(
    model: Model, by: By, reason: Reason = None, key: Key = None, site: SiteOption = None
) -> None:
    """Bring back the version that was live before; without a live one, take the shadow out."""
    with opened(site) as rooms:
        out, back = rooms.lifecycle.rollback(
            model, ambient.now(), by=by, reason=reason, key=_read_key(key)
        )
    typer.echo(f"{out.id}@{out.version}: taken out of routing by {by} ({out.acts[-1]['authn']})")
    if back is not None:
        typer.echo(
            f"{back.id}@{back.version}: live again, for {words(back.scope) or 'all studies'}"
        )
        typer.echo("What waits for the version taken out ends with a reason: see `radseal studies`")
    elif (out.newest("activated") or {}).get("mode") != State.SHADOW:
        typer.echo("No version was live before it that can be used: none is live now")


@app.command()
def retire(
    model: Model, by: By, reason: Reason = None, key: Key = None, site: SiteOption = None
) -> None:
    """Take a model out of routing for good."""
    _act(model, "retire", by, site, reason=reason, key=key)


@app.command("list")
def list_models(site: SiteOption = None, json_: JsonOption = False) -> None:
    """List the models: states, which version is live and which a shadow, why one is out."""
    with opened(site) as rooms:
        with reading(rooms.database) as connection:
            rows = catalog.list_models(connection)
        broken = {row.digest: why for row, why in rooms.catalog.broken()}
    rules = rooms.site.models
    why = [
        why_out(r, approvals=rules.approvals, proven=rules.proven, broken=broken.get(r.digest, ""))
        for r in rows
    ]
    if json_:
        print_json([
            {**asdict(row), "alias": alias(row) or None, "scope": row.scope, "why": said}
            for row, said in zip(rows, why, strict=True)
        ])  # fmt: skip
        return
    print_table(
        ["model", "version", "state", "alias", "scope", "vendor", "digest", "why out of routing"],
        [
            [r.id, r.version, r.state, alias(r), words(r.scope) if alias(r) else "", r.vendor,
             r.digest[:16], said]
            for r, said in zip(rows, why, strict=True)
        ],
        "no model is registered; radseal model push PKG",
    )  # fmt: skip
