"""Commands for whoever makes a package, without a site: check, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge.errors import NotFound, Refused
from models import package, sandbox, signature
from models.errors import ModelError, RunFailed

__all__ = ["Package", "read_file", "register"]

Package = Annotated[Path, typer.Argument(metavar="PKG", help="Package folder.")]


def read_file(path: Path) -> bytes:
    """Read a small file that a person named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None


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
    pems = [read_file(key)] if key is not None else []
    typer.echo(f"signature: {signature.state(folder, Path(f'{folder}.sig'), pems)}")
    raise typer.Exit(0 if tested.passed and not [f for f in faults if not f.warning] else 1)


def sign(
    folder: Package, key: Annotated[Path, typer.Option(help="The vendor's private key, PEM.")]
) -> None:
    """Sign a package by OpenSSF Model Signing; the signature stands beside it as PKG.sig."""
    target = Path(f"{folder}.sig")
    try:
        signature.sign(folder, read_file(key), target)
    except ModelError as error:
        raise Refused(str(error)) from None
    typer.echo(f"signed: {target}")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (check, sign):
        app.command()(command)
