"""Commands about proof: receipt, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.opened import JsonOption, SiteOption, opened, print_json
from bridge.errors import NotFound, Refused, WrongUse
from bridge.front import Front
from ledger.errors import LedgerError
from ledger.verify import read_vkeys, verify_log, verify_proof

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("receipt")(receipt)
    app.command("verify")(verify)


def receipt(
    artifact_uid: Annotated[str, typer.Argument(help="SOPInstanceUID of a result.")],
    output: Annotated[Path, typer.Option("-o", help="FILE.tlog-proof to write.")],
    site: SiteOption = None,
) -> None:
    """Write the receipt of a result: its leaf, the inclusion proof and the checkpoint."""
    with opened(site) as rooms:
        text = Front(rooms, dict).receipt(artifact_uid)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"{output}: verify it anywhere with `radseal verify {output} --vkey ledger.vkey`")


def _keys(vkey: str | None, policy: Path | None) -> list[str]:
    if policy is not None:
        lines = policy.read_text(encoding="utf-8").splitlines()
        return [line.split()[1] for line in lines if line.startswith("log ")]
    if vkey is None:
        raise WrongUse("say whom you trust: --vkey VKEY, a file of them, or --policy FILE")
    path = Path(vkey)
    return read_vkeys(path.read_text(encoding="utf-8") if path.is_file() else vkey)


def verify(
    path: Annotated[Path, typer.Argument(help="A receipt (.tlog-proof) or a log folder.")],
    vkey: Annotated[str | None, typer.Option(help="A verifier key, or a file of them.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A tlog-policy file.")] = None,
    json_: JsonOption = False,
) -> None:
    """Verify a receipt or a log folder offline, by keys that you brought."""
    keys = _keys(vkey, policy)
    if not path.exists():
        raise NotFound(f"{path} is not there")
    found: dict[str, Any]
    try:
        if path.is_dir():
            report = verify_log(path, keys)
            found = {"origin": report.origin, "size": report.size, "types": dict(report.counts)}
        else:
            proof = verify_proof(path.read_text(encoding="utf-8"), keys)
            record = dict(proof.record)
            found = {"origin": proof.checkpoint.origin, "index": proof.index, "leaf": record}
    except (LedgerError, UnicodeDecodeError) as error:
        raise Refused(f"NOT verified: {error}") from None
    if json_:
        print_json({"verified": True, **found})
        return
    typer.echo(f"verified: {', '.join(f'{k} {v}' for k, v in found.items() if k != 'leaf')}")
    if leaf := found.get("leaf"):
        typer.echo(f"leaf: {leaf.get('type')} at {leaf.get('time')}: {leaf.get('body')}")
    typer.echo(
        "This shows that the leaf is in the log that these keys signed. It does not show which "
        "patient it is about, that nothing was withdrawn since, or that the log's operator "
        "showed others the same history: it is consistent with this checkpoint; its operator "
        "could have shown others another history."
    )
