"""Commands about a site's models: trust, untrust, push, approve, activate, retire, list."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient
from bridge.catalog import dates
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
from bridge.store import catalog
from bridge.store.database import reading
from models import archive, package

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="AI models: who delivers them, which ones run.")
Model = Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="The package's identity.id.")]
By = Annotated[str, typer.Option("--by", help="Who does this.")]


@app.command()
def trust(
    pem: Annotated[Path, typer.Argument(metavar="PEM", help="The vendor's public key.")],
    vendor: Annotated[str, typer.Option(help="The vendor as its packages name it.")],
    since: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="First day (UTC); default: now.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day (UTC); default: no end.")
    ] = None,
    site: SiteOption = None,
) -> None:
    """Trust a vendor's public key for packages of this vendor, within dates if you give them."""
    first, last = _day(since), _day(until)
    after = None if last is None else last + timedelta(days=1)
    with opened(site) as rooms:
        key = rooms.registrar.trust(read_file(pem), vendor, ambient.now(), since=first, until=after)
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


def _act(model: str, act: str, by: str, site: Path | None) -> None:
    with opened(site) as rooms:
        row = rooms.lifecycle.act(model, act, ambient.now(), by=by)
    typer.echo(f"{row.id}@{row.version}: {act}d by {by} (asserted)")


@app.command()
def approve(model: Model, by: By, site: SiteOption = None) -> None:
    """Approve a registered model; not by the person who registered it."""
    _act(model, "approve", by, site)


@app.command()
def activate(model: Model, by: By, site: SiteOption = None) -> None:
    """Put an approved model into routing."""
    _act(model, "activate", by, site)


@app.command()
def retire(model: Model, by: By, site: SiteOption = None) -> None:
    """Take a model out of routing for good."""
    _act(model, "retire", by, site)


@app.command("list")
def list_models(site: SiteOption = None, json_: JsonOption = False) -> None:
    """List the models with their states."""
    with opened(site) as rooms, reading(rooms.database) as connection:
        rows = catalog.list_models(connection)
    if json_:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["model", "version", "state", "vendor", "digest"],
        [[r.id, r.version, r.state, r.vendor, r.digest[:16]] for r in rows],
        "no model is registered; radseal model push PKG",
    )
