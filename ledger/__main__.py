"""`python -m ledger verify LOG|URL|PROOF|BUNDLE --vkey VKEY`: the verifier for strangers.

Exit status 0: verified, last line `OK …`. 1: checked and refused, last line `FAIL …`.
2: wrong use.
"""

from __future__ import annotations

import argparse
import errno
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from ledger import ancestors, bundle, leaf, verify
from ledger.archive import is_archive
from ledger.errors import BadKey, LedgerError, MalformedPolicy, VerifyError, printable
from ledger.policy import NO_QUORUM, Policy, of_keys, signature_lines
from ledger.source import PROOF_SIZE, Folder
from ledger.trace import Terms

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ledger", description="Verify a ledger.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("verify", help="a log, a .tlog-proof file or an audit bundle")
    _options(check)
    options = parser.parse_args(arguments)
    try:
        policy = _trusted(options)
        saved = None if options.saved is None else _text(options.saved)
        lines = _verify(options.path, policy, options, saved)
    except (BadKey, MalformedPolicy) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename or options.path} cannot be read: {error.strerror}")
    except LedgerError as error:
        print(f"FAIL {error}")
        return 1
    _say(lines)
    return 0


def _say(lines: Sequence[str]) -> None:
    print("\n".join(map(printable, lines)))


def _options(check: argparse.ArgumentParser) -> None:
    check.add_argument("path", help="a log's folder or http(s) prefix, a proof, or a bundle")
    trust = check.add_mutually_exclusive_group(required=True)
    trust.add_argument("--vkey", action="append", help="a vkey, or a file with one a line")
    trust.add_argument("--policy", type=Path, help="a tlog-policy: log keys, witnesses, quorum")
    check.add_argument("--saved", type=Path, help="a checkpoint kept earlier; the log continues it")
    check.add_argument("--min-size", type=_count, default=0,
                       help="leaves that there must be; by a quorum witnessed ones")  # fmt: skip
    check.add_argument("--previous", action="append", default=[], metavar="LOG",
                       help="a log that it continues, verified too; newest first")  # fmt: skip
    usual = Terms()
    check.add_argument("--sla", type=_count, help="seconds until a study must be closed")
    check.add_argument("--review", type=_count, default=usual.review_seconds,
                       help="seconds until an override must be reviewed")  # fmt: skip
    check.add_argument("--skew", type=_count, default=usual.skew_seconds,
                       help="seconds by which clocks may differ")  # fmt: skip
    check.add_argument("--approvals", type=_count, default=usual.approvals,
                       help="persons who must have approved a model")  # fmt: skip


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _trusted(options: argparse.Namespace) -> Policy:
    if options.policy is not None:
        return Policy.parse(_text(options.policy))
    keys = [key for text in options.vkey for key in verify.named_vkeys(text)]
    return of_keys(keys)


def _text(path: Path) -> str:
    """Read a file of the caller's; bytes that are no UTF-8 stay what they are."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _verify(
    where: str, policy: Policy, options: argparse.Namespace, saved: str | None
) -> list[str]:
    path = Path(where)
    on_web = where.startswith(("http://", "https://"))
    if not on_web and path.exists() and not (path.is_dir() or path.is_file()):
        raise OSError(errno.EINVAL, "it is neither a folder nor a plain file", where)
    if on_web or path.is_dir():
        terms = Terms(options.sla, options.review, options.skew, options.approvals)
        return _log(where, policy, terms, saved, options)
    if saved is not None or options.min_size or options.previous:
        raise BadKey("--saved, --min-size and --previous are about a log's folder or address")
    return _bundle(path, policy) if is_archive(path) else _proof(path, policy)


def _log(
    where: str, policy: Policy, terms: Terms, saved: str | None, options: argparse.Namespace
) -> list[str]:
    progress, least = _show if sys.stderr.isatty() else None, options.min_size
    report = verify.audit(where, policy, terms, saved=saved, min_size=least, progress=progress)
    report = ancestors.compare(report, options.previous, policy, terms)
    lines = [f"{name:24} {count}" for name, count in sorted(report.counts.items())]
    lines += [f"still open: study.received at leaf {index}" for index in report.open_studies]
    lines += [f"not covered by the checkpoint yet: {path}" for path in report.ahead]
    lines += [f"no file of a log, not read: {name!r}" for name in report.beside]
    lines += [f"noted: {words}" for words in report.notes]
    lines += signature_lines(report.not_checked, report.cosigned)
    if report.cosigned and report.witnessed < report.size:
        lines.append(f"not witnessed yet: the leaves from {report.witnessed} on")
    if report.violations:
        _say([*lines, *(str(one) for one in report.violations)])
        raise verify.finding(report)
    seen = f" ({report.witnessed} witnessed)" if policy.quorum != NO_QUORUM else ""
    what = f"{report.size} leaves{seen}, {report.files} files, root {leaf.ref(report.root)}"
    return [*lines, f"OK {report.origin}: {what}"]


def _show(done: int, size: int) -> None:
    """Show on a terminal how far it is."""
    if done % 8192 < 256 or done == size:
        end = "\n" if done == size else ""
        print(f"\r{done:,} of {size:,} leaves", end=end, file=sys.stderr, flush=True)


def _bundle(path: Path, policy: Policy) -> list[str]:
    report = bundle.verify(path, policy)
    if report.violations:
        _say([f"finding: {one}" for one in report.violations])
        raise VerifyError(path.name, f"{len(report.violations)} findings of the rules")
    point = report.verdict.checkpoint
    lines = [f"still open: study.received at leaf {index}" for index in report.open_studies]
    lines += [f"disclosed: leaf {index}" for index in report.disclosures]
    if report.disclosed or report.artifacts:
        lines.append("not checked: what stands under disclosed/ (radseal verify compares it)")
    lines += [bundle.SHOWS_NOT, *signature_lines(report.verdict.unchecked, report.verdict.cosigned)]
    return [*lines, f"OK {point.origin}: {len(report.records)} records of {point.size} leaves"]


def _proof(path: Path, policy: Policy) -> list[str]:
    try:
        text = Folder(path.parent).read(path.name, PROOF_SIZE).decode()
    except UnicodeDecodeError:
        raise VerifyError(path.name, "is not UTF-8") from None
    report = verify.verify_proof(text, policy)
    return [
        leaf.render(report.record).decode(),
        *signature_lines(report.not_checked, report.cosigned),
        f"OK {report.checkpoint.origin}: leaf {report.index} of {report.checkpoint.size},"
        f" {report.record['type']}",
    ]


if __name__ == "__main__":
    gc.disable()  # nothing here makes cycles; looking for some costs an audit a fifth of its time
    sys.exit(main())
