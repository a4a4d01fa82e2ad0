"""The command that reports on a shadow trial: `radseal model trial`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient, trials
from bridge.cli.opened import SiteOption, opened, os_user
from bridge.errors import WrongUse
from bridge.home import VERSION
from bridge.web.pages import Pages

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trial")(trial)


def trial(
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="Which model.")],
    out: Annotated[Path, typer.Option("-o", help="FILE.html to write; FILE.json beside it.")],
    against: Annotated[
        str | None, typer.Option(help="Another model (default: the live version of the same id).")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How many days back.")] = 30,
    by: Annotated[str | None, typer.Option(help="Who asks (default: you).")] = None,
    site: SiteOption = None,
) -> None:
    """Report what a model found on live studies, beside the live one; the log gets its digest."""
    if out.suffix != ".html":
        raise WrongUse("-o names the page to write: FILE.html")
    with opened(site) as rooms:
        until = ambient.now()
        report = trials.assess(rooms, model, against, until - timedelta(days=days), until)
        page = Pages(rooms.site.name, VERSION).render("trial.html", {"told": report.told})
        out.with_suffix(".json").write_bytes(report.data)
        out.write_text(page, encoding="utf-8")
        leaf = trials.say(rooms, report, by or os_user())
    typer.echo(f"written: {out} and {out.with_suffix('.json').name}")
    typer.echo(f"SHA-256 of the JSON file: {report.digest}, in the log as leaf {leaf}")
