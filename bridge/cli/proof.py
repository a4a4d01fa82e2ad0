"""Commands about proof: receipt, verify."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.audit import bundle, words
from bridge.audit.file import verify_file
from bridge.audit.witnessed import cosigned
from bridge.cli.opened import JsonOption, SiteOption, leaves_shown, opened, print_json
from bridge.errors import NotFound, RadsealError, Refused, WrongUse
from bridge.front import Front
from ledger import policy, proof
from ledger.errors import BadKey, LedgerError, MalformedPolicy, printable
from ledger.policy import NO_QUORUM, Policy, signature_lines
from ledger.source import PROOF_SIZE, Folder
from ledger.verify import audit, named_vkeys, verify_proof

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


def verify(
    path: Annotated[
        str,
        typer.Argument(
            help="An SR, SEG or summary file, a receipt, an audit bundle, or a log (folder or URL)."
        ),
    ],
    vkey: Annotated[str | None, typer.Option(help="A verifier key, or a file of them.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A tlog-policy file.")] = None,
    log: Annotated[
        str | None, typer.Option(help="The log's folder or URL, where a policy asks for witnesses.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to compare with a bundle's list.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Verify a result, a receipt, a bundle or a log offline, by keys that you brought."""
    trusted, file = _trusted(vkey, policy), Path(path)
    on_web = path.startswith(("http://", "https://"))
    if not on_web and not (file.is_file() or file.is_dir()):
        raise NotFound(f"{path} is not there")
    if not on_web and not os.access(file, os.R_OK):
        raise Refused(f"{path} may not be read by this account")
    is_bundle = not on_web and bundle.is_bundle(file)
    if images is not None and not (is_bundle and images.is_dir()):
        raise WrongUse("--images is a folder of images to compare with an audit bundle")
    try:
        if is_bundle:
            report = bundle.verify(file, trusted, images)
            found, lines = report.to_json(), list(report.lines())
        elif on_web or file.is_dir():
            found, lines = _log(path, trusted)
        else:
            found, lines = _file(file, trusted, log)
    except BadKey as error:
        raise WrongUse(str(error)) from None
    except (RadsealError, LedgerError) as error:
        if json_:
            print_json({"verified": False, "reason": str(error)})
        raise Refused(f"NOT verified: {printable(str(error))}") from None
    if json_:
        print_json(found)
    else:
        typer.echo("\n".join(map(printable, lines)))
    if not found["verified"]:
        raise Refused("NOT verified: see the findings")


def _trusted(vkey: str | None, file: Path | None) -> Policy:
    """Read whom the caller trusts; nothing of what is verified has a say in it."""
    if (vkey is None) == (file is None):
        raise WrongUse("say whom you trust: --vkey VKEY, a file of them, or --policy FILE")
    try:
        if file is not None:
            return Policy.parse(file.read_text(encoding="utf-8"))
        return policy.of_keys(named_vkeys(str(vkey)))
    except (BadKey, MalformedPolicy) as error:
        raise WrongUse(str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"the keys cannot be read ({type(error).__name__})") from None


def _file(path: Path, trusted: Policy, log: str | None) -> tuple[dict[str, Any], list[str]]:
    """Verify a result or a receipt, known by its content; for programs and in lines."""
    with path.open("rb") as file:
        head = file.read(132)
    if head.startswith(proof.HEADER.encode()):
        return _receipt(path, trusted, log)
    if head[128:] == b"DICM":
        report = verify_file(path, trusted)
        witnessed = cosigned(report.chain.composed.index, report.verdict, trusted, log)
        return words.as_json(report, witnessed), words.as_text(report, witnessed)
    raise Refused(
        f"{path} is neither a DICOM file, a receipt (.tlog-proof), an audit bundle nor a log "
        "folder: nothing in it can be verified"
    )


def _receipt(path: Path, trusted: Policy, log: str | None) -> tuple[dict[str, Any], list[str]]:
    text = Folder(path.parent).read(path.name, PROOF_SIZE).decode("utf-8", "surrogateescape")
    # The quorum is asked for below, where the log may be brought to show it.
    report = verify_proof(text, replace(trusted, quorum=NO_QUORUM))
    verdict = trusted.judge(proof.Proof.parse(text).checkpoint)
    witnessed = cosigned(report.index, verdict, trusted, log)
    record = dict(report.record)
    found = {
        "verified": True, "what": "receipt", "origin": report.checkpoint.origin,
        "index": report.index, "leaf": record, "witnessed": dict(witnessed),
        "not_checked": list(verdict.unchecked),
    }  # fmt: skip
    return found, [
        f"verified: origin {report.checkpoint.origin}, index {report.index}",
        f"leaf: {record['type']} at {record['time']}: {record['body']}",
        *signature_lines(verdict.unchecked, witnessed),
        "This shows that the leaf is in the log that these keys signed. It does not show which "
        "patient it is about, that nothing was withdrawn since, or what its file holds now.",
    ]


def _log(where: str, trusted: Policy) -> tuple[dict[str, Any], list[str]]:
    with leaves_shown() as progress:
        report = audit(where, trusted, progress=progress)
    findings = [str(one) for one in report.violations]
    found = {
        "verified": not findings, "what": "log", "origin": report.origin, "size": report.size,
        "types": dict(report.counts), "findings": findings, "notes": list(report.notes),
        "open": list(report.open_studies), "witnessed": dict(report.cosigned),
        "not_checked": list(report.not_checked),
    }  # fmt: skip
    head = "NOT verified" if findings else "verified"
    return found, [
        f"{head}: origin {report.origin}, size {report.size}",
        *(f"  {kind:24} {count}" for kind, count in sorted(report.counts.items())),
        *(f"finding: {one}" for one in findings),
        *(f"noted: {one}" for one in report.notes),
        *(f"still open: study.received at leaf {index}" for index in report.open_studies),
        *signature_lines(report.not_checked, report.cosigned),
    ]
