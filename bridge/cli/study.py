"""Commands about studies: studies, why, complete, retry, cancel, send, rerun, quarantine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge import acts
from bridge import rerun as second
from bridge.cli.opened import JsonOption, SiteOption, opened, print_json, print_table
from bridge.errors import NotFound, Refused
from bridge.peers import dicom
from bridge.store import quarantine as rows_of
from bridge.store import story
from bridge.store.database import reading
from bridge.study import StudyState, StudyStory

__all__ = ["quarantine", "register"]

quarantine = typer.Typer(no_args_is_help=True, help="Images that wait for a person's word.")
Uid = Annotated[str, typer.Argument(metavar="STUDY_UID", help="StudyInstanceUID, or our study id.")]
By = Annotated[str, typer.Option("--by", help="Who decides.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (studies, why, complete, retry, cancel, send, runs, rerun):
        app.command(command.__name__)(command)


def studies(
    state: Annotated[StudyState | None, typer.Option(help="Only these.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    site: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """List the studies, newest first."""
    with opened(site) as rooms, reading(rooms.database) as connection:
        lines, total = story.list_studies(connection, state=state, limit=limit)
    if json_:
        print_json([asdict(line) for line in lines])
        return
    print_table(
        ["received", "state", "modality", "images", "study", "where it stands"],
        [
            [f"{line.received_at:%Y-%m-%d %H:%M:%S}", str(line.state), line.modalities,
             str(line.instances), line.study_instance_uid, line.state_words]
            for line in lines
        ],
        "no study was received yet",
    )  # fmt: skip
    if total > len(lines):
        typer.echo(f"{total - len(lines)} more; say --limit")


def why(uid: Uid, site: SiteOption = None, json_: JsonOption = False) -> None:
    """Tell every stage of a study with times, reasons and leaves."""
    with opened(site) as rooms:
        study = acts.find(rooms, uid)
        with reading(rooms.database) as connection:
            told = story.story(connection, study.id)
        places = {line.leaf: rooms.record.covered(line.leaf) for line in told.lines if line.leaf}
    if json_:
        print_json(_as_json(told, places))
        return
    _print_story(told, places)


def _as_json(told: StudyStory, places: dict[str, int | None]) -> dict[str, Any]:
    found = asdict(told)
    for line in found["lines"]:
        line["index"] = places.get(line["leaf"])
    return found


def _print_story(told: StudyStory, places: dict[str, int | None]) -> None:
    line = told.line
    typer.echo(f"{line.study_instance_uid}  {line.state}: {line.state_words}")
    for one in told.series:
        expected = f" of {one.expected}" if one.expected is not None else ""
        typer.echo(f"  {one.modality} series {one.series_instance_uid}: {one.held}{expected}")
    for reason, count in told.quarantined:
        typer.echo(f"  in quarantine: {count} images, {reason}")
    rows = []
    for fact in told.lines:
        place = places.get(fact.leaf) if fact.leaf else None
        leaf = "" if fact.leaf is None else f"#{place}" if place is not None else "pending"
        rows.append([f"{fact.at:%H:%M:%S}", fact.stage, fact.code, leaf, fact.words])
    print_table(["time", "stage", "what", "leaf", "in words"], rows, "nothing happened yet")
    for route in told.routes:
        head = f"{route.model} {route.version}: {route.state}"
        typer.echo(f"{head}{': ' + route.reason if route.reason else ''}")
        for what, value, unit in route.measurements:
            typer.echo(f"    {what}: {value} {unit}")
        for artifact in route.artifacts:
            typer.echo(f"    {artifact.kind} {artifact.sop_instance_uid}")
            for delivery in artifact.deliveries:
                typer.echo(f"      {delivery.destination}: {delivery.state}, {delivery.words}")


def complete(uid: Uid, site: SiteOption = None) -> None:
    """Say that a study is complete; its routes start at once."""
    with opened(site) as rooms:
        typer.echo(acts.complete(rooms, uid))


def retry(uid: Uid, site: SiteOption = None) -> None:
    """Try again what failed or was refused."""
    with opened(site) as rooms:
        typer.echo(acts.retry(rooms, uid))


def cancel(uid: Uid, site: SiteOption = None) -> None:
    """Stop what is still to be done for a study."""
    with opened(site) as rooms:
        typer.echo(acts.cancel(rooms, uid))


def runs(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    site: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """List the newest runs of models."""
    with opened(site) as rooms, reading(rooms.database) as connection:
        found = story.list_runs(connection, limit)
    if json_:
        print_json(found)
        return
    print_table(
        ["run", "model", "state", "started", "seconds", "reason"],
        [
            [r["id"], f"{r['model']}@{r['version']}", r["state"],
             f"{r['started_at']:%Y-%m-%d %H:%M:%S}",
             "" if r["seconds"] is None else f"{r['seconds']:.1f}", r["reason"]]
            for r in found
        ],
        "no model ran yet",
    )  # fmt: skip


def rerun(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="See `radseal runs`.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare with what the log holds of the run.")
    ] = False,
    site: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a model again on the same stored images; delivers nothing.

    With --compare: exit 0 if the outputs are equal, 1 if they differ, 2 if it is not possible.
    """
    try:
        with opened(site) as rooms:
            found = second.rerun(rooms, run_id)
    except (NotFound, Refused) as error:
        if json_:
            print_json({"run": run_id, "outcome": "not possible", "reason": str(error)})
        else:
            typer.echo(f"not possible: {error}", err=True)
        raise typer.Exit(2) from None
    outcome = "differs" if found.differs else "equal"
    if json_:
        told = asdict(found) | ({"outcome": outcome, "words": found.words} if compare else {})
        print_json(told)
    else:
        typer.echo(found.words if compare else found.statement)
    raise typer.Exit(1 if compare and found.differs else 0)


def send(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files or folders.")],
    site: SiteOption = None,
) -> None:
    """Send files to this site's own listener by C-STORE."""
    files = sorted(f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    if not files:
        raise Refused("there are no files to send")
    with opened(site) as rooms:
        listener = rooms.site.listener
        host = "127.0.0.1" if listener.host in {"0.0.0.0", "::"} else listener.host  # noqa: S104
        calling = rooms.site.sources[0].ae_title if rooms.site.sources else listener.ae_title
        target = dicom.Peer(listener.ae_title, host, listener.port, calling)
    sent = dicom.store(target, [(str(f), f) for f in files])
    refused = {name: one for name, one in sent.items() if one.outcome != "stored"}
    for name, one in refused.items():
        typer.echo(f"{name}: {one.words}", err=True)
    typer.echo(f"{len(sent) - len(refused)} of {len(files)} files stored")
    raise typer.Exit(1 if refused else 0)


@quarantine.command("list")
def quarantine_list(site: SiteOption = None, json_: JsonOption = False) -> None:
    """List what is in quarantine or in conflict, and why."""
    with opened(site) as rooms, reading(rooms.database) as connection:
        rows = rows_of.counts(connection)
    if json_:
        print_json([
            {"study": r.study_instance_uid, "state": r.state, "reason": r.reason,
             "instances": r.number, "last": r.last}
            for r in rows
        ])  # fmt: skip
        return
    print_table(
        ["study", "state", "images", "reason"],
        [[r.study_instance_uid or "(no study)", r.state, str(r.number), r.reason] for r in rows],
        "nothing is in quarantine",
    )


@quarantine.command("accept")
def quarantine_accept(uid: Uid, by: By, site: SiteOption = None) -> None:
    """Take quarantined images into their study; consent is asked for both patients."""
    with opened(site) as rooms:
        typer.echo(acts.accept(rooms, uid, by))


@quarantine.command("discard")
def quarantine_discard(uid: Uid, by: By, site: SiteOption = None) -> None:
    """Say that quarantined images do not belong to their study."""
    with opened(site) as rooms:
        typer.echo(acts.discard(rooms, uid, by))
