"""A site's own logs judged by the trace rules: the open one and those that ended before it.

Read from the files that strangers read, by the site's published keys: no database is asked, and
a running service is not disturbed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.errors import NotFound, SettingsError
from bridge.origins import ended
from ledger.errors import LedgerError, VerifyError
from ledger.policy import NO_QUORUM, Policy
from ledger.rebuild import Progress
from ledger.trace import Terms
from ledger.verify import Report, audit

__all__ = ["Judged", "judge"]


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found in one log. `refused` says what is forged or damaged: then nothing else is."""

    folder: Path
    report: Report | None
    refused: str

    @property
    def good(self) -> bool:
        """Whether its files hold and no rule is broken."""
        return self.report is not None and self.report.broken == 0

    def to_json(self) -> dict[str, Any]:
        """Give the same as plain JSON values."""
        if self.report is None:
            return {"good": False, "log": self.folder.parent.name, "refused": self.refused}
        one = self.report
        return {
            "good": self.good, "origin": one.origin, "size": one.size, "types": dict(one.counts),
            "findings": [
                {"leaf": v.index, "type": v.type, "rule": v.rule, "words": v.words}
                for v in one.violations
            ],
            "broken": one.broken, "notes": list(one.notes),
            "open_studies": list(one.open_studies), "ahead": list(one.ahead),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Say it in lines, what matters most last."""
        if self.report is None:
            return [f"FAIL {self.folder.parent.name}: {self.refused}"]
        one = self.report
        lines = [f"still open: study.received at leaf {index}" for index in one.open_studies]
        lines += [*one.notes, *(str(v) for v in one.violations)]
        if one.broken > len(one.violations):
            lines.append(f"and {one.broken - len(one.violations)} more")
        word = "OK" if self.good else "FAIL"
        return [*lines, f"{word} {one.origin}: {one.size} leaves, {one.broken} findings"]


def judge(site_folder: Path, terms: Terms, progress: Progress | None = None) -> list[Judged]:
    """Judge every log of a site, oldest first; raises NotFound before the first checkpoint."""
    numbers = [
        number
        for number in range(1, ended.number_of_log(site_folder))
        if not _is_empty(site_folder, number)
    ]
    found = [_judge(ended.place(site_folder, number), terms, None) for number in numbers]
    if not (site_folder / "ledger" / "checkpoint").exists():
        raise NotFound("the log has no checkpoint yet; `radseal serve` publishes one")
    return [*found, _judge(site_folder, terms, progress)]


def _is_empty(site_folder: Path, number: int) -> bool:
    """Whether a log ended before its first leaf: nothing of it can be, or need be, judged."""
    told = ended.how(site_folder, number)
    published = ended.place(site_folder, number) / "ledger" / "checkpoint"
    return told is not None and told.size == 0 and not published.exists()


def _judge(home: Path, terms: Terms, progress: Progress | None) -> Judged:
    try:
        policy = Policy.parse((home / "ledger.policy").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, LedgerError):
        raise SettingsError(
            f"{home.name}/ledger.policy cannot be read; any command on the site writes it again"
        ) from None
    try:
        # Cosignatures bound the times; whether enough witnesses signed is `radseal doctor`'s.
        report = audit(home / "ledger", replace(policy, quorum=NO_QUORUM), terms, progress=progress)
    except VerifyError as error:
        return Judged(home / "ledger", None, str(error))
    return Judged(home / "ledger", report, "")
