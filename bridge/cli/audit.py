"""Commands for audits: export a study's records as one bundle, judge the whole log's story."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient
from bridge import site as settings
from bridge.audit.export import Wish, export
from bridge.audit.own_logs import judge
from bridge.cli.opened import (
    JsonOption,
    SiteOption,
    leaves_shown,
    opened,
    os_user,
    print_json,
)
from bridge.errors import Refused
from bridge.home import publish
from ledger.errors import printable
from ledger.trace import Terms

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="What an auditor is given, and what the log shows.")


class Disclosed(StrEnum):
    """What a bundle discloses beside the records."""

    NONE = "none"
    STUDY = "study"


@app.command("export")
def export_study(
    study: Annotated[str, typer.Argument(metavar="STUDY_UID")],
    output: Annotated[Path, typer.Option("-o", help="The bundle to write, such as bundle.zip.")],
    to: Annotated[
        str, typer.Option(help="Who receives it; stands in the log (default: your account).")
    ] = "",
    purpose: Annotated[
        str, typer.Option(help="For what, as consent is asked: a code of v3-ActReason.")
    ] = "HQUALIMP",
    by: Annotated[
        str, typer.Option(help="Who gives it; stands in the log (default: your account).")
    ] = "",
    basis: Annotated[
        str, typer.Option(help="The legal basis that stands instead of the patient's consent.")
    ] = "",
    disclose: Annotated[
        Disclosed,
        typer.Option(help="none: without its key, consent documents, requests and list of images."),
    ] = Disclosed.STUDY,
    image: Annotated[
        list[str] | None, typer.Option(help="Show only this SOPInstanceUID of the input.")
    ] = None,
    with_artifacts: Annotated[
        bool, typer.Option("--with-artifacts", help="Add the results as they were sent.")
    ] = False,
    site: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """Write one study's records and their proofs into a bundle; consent is asked first."""
    wish = Wish(
        study=study, by=by or os_user(), account=os_user(), to=to or os_user(), purpose=purpose,
        basis=basis,
        study_key=disclose is Disclosed.STUDY, images=tuple(image or ()), results=with_artifacts,
    )  # fmt: skip
    with opened(site) as rooms:
        made = export(rooms, wish, output, publish=publish, new_id=ambient.new_id)
    if json_:
        print_json({
            "bundle": str(made.path), "records": made.records, "leaves": list(made.leaves),
            "witnessed": made.witnessed, "left_out": list(made.left_out),
        })  # fmt: skip
        return
    typer.echo(f"{output}: {made.records} records; the log says who received them")
    for words in made.left_out:
        typer.echo(f"left out: {words}", err=True)
    typer.echo(f"verify it anywhere with `radseal verify {output} --vkey ledger.vkey`")


@app.command()
def trace(
    sla: Annotated[
        int | None, typer.Option(help="Seconds after which a study that is still open is wrong.")
    ] = None,
    site: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """Judge the site's log by the trace rules; a finding names its leaf and its rule."""
    folder = settings.find_folder(site)
    settings.read(folder)
    with leaves_shown() as progress:
        found = judge(folder, Terms(sla_seconds=sla), progress)
    if json_:
        print_json([one.to_json() for one in found])
    else:
        typer.echo("\n".join(printable(line) for one in found for line in one.lines()))
    if not all(one.good for one in found):
        raise Refused("the log's story breaks rules, or its files do not hold; see the findings")
