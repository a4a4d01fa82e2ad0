"""Commands of a witness, which any hospital can run for others: init, serve, trust, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bridge import ambient, logs, quorum
from bridge.api import alone
from bridge.api.wire import AccessLine
from bridge.api.witness import PREFIX
from bridge.cli.opened import JsonOption, print_json, print_table
from bridge.errors import WrongUse
from bridge.home import VERSION
from bridge.witnessing import cosigning
from bridge.witnessing.standing import when
from ledger import note
from ledger.errors import LedgerError
from ledger.verify import named_vkeys

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="A witness for the logs of other hospitals.")

FolderArgument = Annotated[Path, typer.Argument(help="The witness's folder.")]


@app.command("init")
def init(
    folder: FolderArgument,
    name: Annotated[str, typer.Option(help="Its name, such as witness.hospital.example/w1.")],
    as_: Annotated[
        str, typer.Option("--as", help="What partners call it in their site.toml.")
    ] = "partner",
    url: Annotated[
        str, typer.Option(help="Where partners reach it, ending in /witness.")
    ] = f"http://127.0.0.1:8081{PREFIX}",
    json_: JsonOption = False,
) -> None:
    """Make a witness: keys, an empty record, no log trusted yet."""
    folder = folder.resolve()
    if wrong := quorum.fault(url):
        raise WrongUse(f"--url {wrong}")
    if not quorum.is_name(as_):
        raise WrongUse("--as may have lower case letters, digits, . - and _")
    cosigning.create(folder, name, ambient.entropy)
    lines = cosigning.policy_lines(folder, as_, url)
    if json_:
        print_json({"witness": str(folder), "vkeys": cosigning.vkeys(folder), "lines": lines})
        return
    typer.echo(f"{folder} is ready. Its public keys:")
    for key in cosigning.vkeys(folder):
        typer.echo(f"  {key}")
    typer.echo("The line for a partner's [ledger] witnesses (the second, where wanted, is the")
    typer.echo("same witness with its post-quantum key):")
    for line in lines:
        typer.echo(f"  {line}")
    typer.echo(f"Next: radseal witness trust {folder} LEDGER.VKEY (the partner's file)")
    typer.echo(f"and radseal witness serve {folder}")
    typer.echo(f'(or, where a site is served, in its site.toml: [witness] folder = "{folder}")')


@app.command("serve")
def serve(
    folder: FolderArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8081,
) -> None:
    """Answer partners' logs until Ctrl-C."""
    logs.setup()
    cosigner = cosigning.open_witness(folder.resolve())
    typer.echo(f"witness {cosigning.vkeys(folder)[0]}")
    typer.echo(f"answers at http://{host}:{port}{PREFIX}")
    try:
        alone.run(alone.create(cosigner, VERSION, ambient.now, _access), host, port)
    finally:
        cosigner.close()


def _access(line: AccessLine) -> None:
    logs.get().info(
        "http", method=line.method, route_template=line.route, status=line.status,
        seconds=round(line.ms / 1000, 4), role=line.role,
    )  # fmt: skip


@app.command("trust")
def trust(
    folder: FolderArgument,
    vkeys: Annotated[list[str], typer.Argument(help="VKEYs, or files of them (ledger.vkey).")],
) -> None:
    """Cosign the logs of these keys from now on; a running witness sees it at once."""
    keys = [key for one in vkeys for key in named_vkeys(one)]
    for origin in cosigning.trust(folder.resolve(), keys):
        typer.echo(f"cosigns {origin}")


@app.command("list")
def list_(folder: FolderArgument, json_: JsonOption = False) -> None:
    """List the logs it trusts and what it last cosigned of each; exit 1 if one shows two faces."""
    folder = folder.resolve()
    cosigner = cosigning.open_witness(folder)
    try:
        kept = {one.origin: one for one in cosigner.kept()}
    finally:
        cosigner.close()
    known = cosigning.trusted(folder)
    rows: list[dict[str, Any]] = []
    for origin in sorted({*known, *kept}):
        one = kept.get(origin)
        split = one is not None and one.split is not None
        rows.append(
            {"origin": origin, "trusted": origin in known, "size": one.size if one else 0,
             "cosigned": _when(folder, one.note) if one else None,
             "split": list(one.split) if one and one.split else None}
        )  # fmt: skip
        if split and not json_:
            typer.echo(f"{origin} HAS SIGNED TWO HISTORIES: --json shows both", err=True)
    if json_:
        print_json(rows)
    else:
        print_table(
            ["log", "trusted", "size", "cosigned"],
            [[str(r["origin"]), "yes" if r["trusted"] else "no", str(r["size"]),
              str(r["cosigned"] or "not yet")] for r in rows],
            "no log is trusted yet: radseal witness trust",
        )  # fmt: skip
    raise typer.Exit(1 if any(row["split"] for row in rows) else 0)


def _when(folder: Path, signed: str) -> str | None:
    """Say when this witness cosigned a note of its record, by its own signature."""
    ours = [note.Verifier.from_vkey(key) for key in cosigning.vkeys(folder)]
    try:
        times = [time for _, time in note.open_note(signed, ours).signed if time is not None]
    except LedgerError:
        return None
    return when(max(times))
