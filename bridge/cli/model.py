"""Commands about models: trust, check, sign, push, approve, activate, retire, list."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient
from bridge.cli.opened import JsonOption, SiteOption, opened, os_user, print_json, print_table
from bridge.errors import NotFound, Refused
from bridge.store import catalog
from bridge.store.database import reading
from models import package, sandbox, signature
from models.errors import ModelError, RunFailed

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="AI models: who delivers them, which ones run.")
Package = Annotated[Path, typer.Argument(metavar="PKG", help="Package folder.")]
Model = Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="The package's identity.id.")]
By = Annotated[str, typer.Option("--by", help="Who does this.")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None


@app.command()
def trust(
    pem: Annotated[Path, typer.Argument(metavar="PEM", help="The vendor's public key.")],
    vendor: Annotated[str, typer.Option(help="The vendor as its packages name it.")],
    site: SiteOption = None,
) -> None:
    """Trust a vendor's public key for packages of this vendor."""
    with opened(site) as rooms:
        digest = rooms.catalog.trust(_read(pem), vendor, ambient.now())
    typer.echo(f"{vendor}'s key {digest[:16]} is trusted")


@app.command()
def check(
    folder: Package,
    key: Annotated[Path | None, typer.Option(help="Public key to check the signature by.")] = None,
) -> None:
    """Check a package: manifest, graph, self-test, signature; every fault with its fix."""
    limits = sandbox.Limits()
    try:
        found = package.load(folder)
        faults = sandbox.admit(found, limits)
    except (ModelError, RunFailed) as error:
        raise Refused(str(error)) from None
    for fault in faults:
        typer.echo(
            f"{'note ' if fault.warning else 'FAULT'} {fault.file}: {fault.key}: {fault.text}; "
            f"{fault.fix}"
        )
    tested = sandbox.selftest(found, limits)
    typer.echo(f"self-test: {'passed' if tested.passed else 'FAILED'}: {tested.text}")
    pems = [_read(key)] if key is not None else []
    typer.echo(f"signature: {signature.state(folder, Path(f'{folder}.sig'), pems)}")
    raise typer.Exit(0 if tested.passed and not [f for f in faults if not f.warning] else 1)


@app.command()
def sign(
    folder: Package, key: Annotated[Path, typer.Option(help="The vendor's private key, PEM.")]
) -> None:
    """Sign a package by OpenSSF Model Signing; the signature stands beside it as PKG.sig."""
    target = Path(f"{folder}.sig")
    try:
        signature.sign(folder, _read(key), target)
    except ModelError as error:
        raise Refused(str(error)) from None
    typer.echo(f"signed: {target}")


@app.command()
def push(folder: Package, site: SiteOption = None) -> None:
    """Verify, admit and register a package."""
    with opened(site) as rooms:
        row = rooms.catalog.push(
            folder.resolve(), ambient.now(), by=os_user(),
            progress=lambda what: typer.echo(f"checking {what}", err=True),
        )  # fmt: skip
    typer.echo(f"registered {row.id}@{row.version}, model {row.digest[:16]}; next: approve")


def _act(model: str, act: str, by: str, site: Path | None) -> None:
    with opened(site) as rooms:
        row = rooms.catalog.act(model, act, ambient.now(), by=by)
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
