"""Commands for whoever makes a package, without a site: new, import, check, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient, rehearsal
from bridge.errors import NotFound, Refused, WrongUse
from models import package, packing, sandbox, signature
from models.errors import ModelError, RunFailed
from models.fault import Fault
from models.skeleton import KINDS

__all__ = ["Package", "read_file", "register"]

Package = Annotated[Path, typer.Argument(metavar="PKG", help="Package folder.")]


def read_file(path: Path) -> bytes:
    """Read a small file that a person named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    id_: Annotated[str, typer.Option("--id", help="Reverse DNS name, e.g. com.acme.lung.")],
    vendor: Annotated[str, typer.Option(help="The vendor as its key is trusted.")],
    kind: Annotated[str, typer.Option(help=f"What comes out: {', '.join(KINDS)}.")] = KINDS[0],
    onnx: Annotated[Path | None, typer.Option(help="The model; its graph fills the rest.")] = None,
) -> None:
    """Write a first package; what only you know is marked TODO, and `check` names each place."""
    if kind not in KINDS:
        raise WrongUse(f"--kind is one of {', '.join(KINDS)}")
    if not package.is_id(id_):
        raise WrongUse("--id is a reverse DNS name of small letters and digits: com.acme.lung")
    if not 0 < len(vendor.strip()) <= 64:
        raise WrongUse("--vendor is a name of at most 64 characters")
    try:
        told = packing.start(folder, id=id_, vendor=vendor, kind=kind, onnx=onnx)
    except RunFailed as error:
        raise Refused(f"{onnx}: {error.text}") from None
    for line in told:
        typer.echo(line)
    _print_open(folder)


def import_(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="MONAI bundle: folder or ZIP.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    id_: Annotated[str | None, typer.Option("--id", help="Reverse DNS name.")] = None,
    vendor: Annotated[str | None, typer.Option(help="The vendor as its key is trusted.")] = None,
) -> None:
    """Make a package of a MONAI bundle with an ONNX model; what cannot be mapped is listed."""
    if id_ is not None and not package.is_id(id_):
        raise WrongUse("--id is a reverse DNS name of small letters and digits: com.acme.lung")
    try:
        told = packing.take(
            bundle, folder, id=id_ or f"{package.TODO} a reverse DNS name, com.acme.lung",
            vendor=vendor or f"{package.TODO} the vendor as its key is trusted",
        )  # fmt: skip
    except RunFailed as error:
        raise Refused(f"{bundle}: {error.text}") from None
    for line in told:
        typer.echo(line)
    _print_open(folder)


def _print_open(folder: Path) -> None:
    """Say what is still to be filled in, and what comes next."""
    for fault in packing.open_places(folder):
        typer.echo(f"TODO {fault.file}: {fault.key}: {fault.fix}")
    typer.echo(f"next: fill in what is marked, then radseal model check {folder}")


def check(
    folder: Package,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE...]", help="DICOM files or folders to try it on."),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Public key to check the signature by.")] = None,
) -> None:
    """Check a package: every fault with its fix, self-test, signature; try it on DICOM files."""
    limits = sandbox.Limits()
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder; name the package's folder")
    try:
        found, faults = packing.examine(folder, limits)
    except RunFailed as error:
        raise Refused(str(error)) from None
    for fault in faults:
        typer.echo(f"{'note ' if fault.warning else 'FAULT'} {_words(fault)}")
    wrong = any(not fault.warning for fault in faults)
    pems = [read_file(key)] if key is not None else []
    if found is None or wrong:
        typer.echo("self-test: not run; mend the faults first")
        typer.echo(f"signature: {signature.state(folder, Path(f'{folder}.sig'), pems)}")
        raise typer.Exit(1)
    tested = sandbox.selftest(found, limits)
    typer.echo(f"self-test: {'passed' if tested.passed else 'FAILED'}: {tested.text}")
    typer.echo(f"signature: {signature.state(folder, Path(f'{folder}.sig'), pems)}")
    for heading, text in sandbox.card(found, limits):
        typer.echo(f"card: {heading}: {text}")
    fine = tested.passed
    if files:
        fine = _try(found, files) and fine
    raise typer.Exit(0 if fine else 1)


def _words(fault: Fault) -> str:
    where = f"{fault.file}: {fault.key}" if fault.key else fault.file
    return f"{where}: {fault.text}; {fault.fix}"


def _try(found: package.Package, files: list[Path]) -> bool:
    """Run the package on a person's own files and print all of it; False where it did not run."""
    tried = rehearsal.on(found, files, ambient.now)
    for line in tried.lines:
        typer.echo(line)
    return tried.ran


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
    for command in (new, check, sign):
        app.command()(command)
    app.command("import")(import_)
