"""`python -m ledger verify LOG|PROOF --vkey VKEY`: the verifier for strangers.

Exit status 0: verified, last line `OK …`. 1: checked and refused, last line `FAIL …`.
2: wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ledger import leaf, verify
from ledger.errors import BadKey, VerifyError

__all__ = ["main"]

_CAUTION = "consistent with this checkpoint; its operator could have shown others another history"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ledger", description="Verify a ledger.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("verify", help="a log folder or a .tlog-proof file, offline")
    check.add_argument("path", type=Path, help="log folder, or a proof")
    check.add_argument(
        "--vkey", action="append", required=True, help="a vkey, or a file with one a line"
    )
    options = parser.parse_args(arguments)
    try:
        vkeys = [key for text in options.vkey for key in _keys(text)]
        if not options.path.exists():
            parser.error(f"{options.path} does not exist")
        lines = _log(options.path, vkeys) if options.path.is_dir() else _proof(options.path, vkeys)
    except BadKey as error:
        parser.error(str(error))
    except VerifyError as error:
        print(f"FAIL {error}")
        return 1
    print("\n".join(lines))
    return 0


def _keys(text: str) -> list[str]:
    path = Path(text)
    return verify.read_vkeys(path.read_text(encoding="utf-8")) if path.is_file() else [text]


def _log(folder: Path, vkeys: Sequence[str]) -> list[str]:
    report = verify.verify_log(folder, vkeys)
    lines = [f"{name:24} {count}" for name, count in sorted(report.counts.items())]
    lines += [f"still open: study.received at leaf {index}" for index in report.open_studies]
    lines += [f"not covered by the checkpoint yet: {path}" for path in report.ahead]
    lines.append(f"unwitnessed: {_CAUTION}")
    root = leaf.ref(report.root)
    return [*lines, f"OK {report.origin}: {report.size} leaves, {report.files} files, root {root}"]


def _proof(path: Path, vkeys: Sequence[str]) -> list[str]:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise VerifyError(path.name, "is not UTF-8") from None
    report = verify.verify_proof(text, vkeys)
    record = leaf.render(report.record).decode()
    return [
        record,
        f"unwitnessed: {_CAUTION}",
        f"OK {report.checkpoint.origin}: leaf {report.index} of {report.checkpoint.size},"
        f" {report.record['type']}",
    ]


if __name__ == "__main__":
    sys.exit(main())
