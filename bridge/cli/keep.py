"""Commands that keep a site: backup, restore, ledger continue, key rotate and retire-old."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient, site
from bridge.cli.opened import (
    JsonOption,
    SiteOption,
    bytes_shown,
    opened,
    os_user,
    print_json,
    print_table,
)
from bridge.continuity import rotation, succession
from bridge.continuity.backup import back_up
from bridge.continuity.restore import Plan, Restored
from bridge.continuity.restore import restore as restore_site
from bridge.errors import Refused, WrongUse
from bridge.origins.ended import all_ended, goes_on_as, store_of, under_way
from bridge.origins.published import Standing, compare, fetch, own_vkeys
from bridge.site import Site
from bridge.turns import using
from ledger.checkpoint import Checkpoint
from ledger.log import Log

__all__ = ["key", "ledger", "register"]

ledger = typer.Typer(no_args_is_help=True, help="The site's log as a whole.")
key = typer.Typer(no_args_is_help=True, help="The keys that sign the log.")
By = Annotated[str | None, typer.Option("--by", help="Who does this (default: you).")]
Published = Annotated[
    str | None,
    typer.Option(help="A checkpoint that others have seen: file, log folder or URL."),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(
    file: Annotated[Path, typer.Argument(help="FILE to write; two more are written beside it.")],
    vault: Annotated[Path | None, typer.Option(help="File for the patients' keys.")] = None,
    keys: Annotated[Path | None, typer.Option(help="File for the site's own keys.")] = None,
    expires: Annotated[int, typer.Option(min=1, max=3650, help="Days for the vault.")] = 30,
    site_: SiteOption = None,
    json_: JsonOption = False,
) -> None:
    """Copy the whole site while it works: FILE, FILE.keys and FILE.vault-until-DATE.

    Keep the three apart, and delete the vault's copy on its date: until then an erasure is not
    complete.
    """
    folder = site.find_folder(site_)
    with using(folder):
        settings = site.read(folder)
        with bytes_shown("backup", _bytes_below(settings)) as progress:
            made = back_up(
                settings, file.absolute(), vault=vault and vault.absolute(),
                keys=keys and keys.absolute(), days=expires, now=ambient.now(), progress=progress,
            )  # fmt: skip
    if json_:
        print_json({"site": made.site, "vault": made.vault, "keys": made.keys, "size": made.size})
        return
    typer.echo(f"{made.site}: the site, its log of {made.size} leaves; without any key")
    for path, words in (
        (made.keys, "the site's keys; keep it where nobody else reads"),
        (made.vault, "the patients' keys; delete it on its date, erasures wait for that"),
    ):
        if path is not None:
            typer.echo(f"{path}: {words}")
    if made.keys is None or made.vault is None:
        typer.echo("this site has no keys/ or no vault: their copy is missing", err=True)


def _bytes_below(settings: Site) -> int:
    paths = (settings.instances, settings.folder)
    files = {file for path in paths for file in path.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files if file.exists())


def restore(
    file: Annotated[Path, typer.Argument(help="FILE that `radseal backup` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    vault: Annotated[Path | None, typer.Option(help="Default: FILE.vault-until-…")] = None,
    keys: Annotated[Path | None, typer.Option(help="Default: FILE.keys.")] = None,
    published: Published = None,
    behind: Annotated[
        bool, typer.Option("--behind", help="Leaves were published after this backup.")
    ] = False,
    continue_as: Annotated[
        str | None, typer.Option(metavar="NEW_ORIGIN", help="Begin a new log under this name.")
    ] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Use an expired vault.")] = False,
    by: By = None,
    json_: JsonOption = False,
) -> None:
    """Restore a site: every byte compared, rows migrated, the log verified.

    A log behind what was published must never be appended to. If that may be, say --published
    or --behind, and --continue-as NEW_ORIGIN: care goes on in a new log.
    """
    plan = Plan(
        file.absolute(), vault and vault.absolute(), keys and keys.absolute(), published, behind,
        continue_as, expired, by or os_user(),
    )  # fmt: skip
    size = file.stat().st_size if file.is_file() else None
    with bytes_shown("restore", size) as progress:
        made = restore_site(plan, folder.absolute(), ambient.now(), progress)
    if continue_as is not None and made.keys:
        with opened(made.folder):
            pass  # the new log says how it began
    settings = site.read(made.folder)
    if json_:
        print_json({
            "site": made.folder, "origin": settings.origin, "size": made.size,
            "made": made.about["made"], "standing": made.standing, "vault": made.vault,
            "keys": made.keys,
        })  # fmt: skip
        return
    _tell(made, settings, plan)


def _tell(made: Restored, settings: Site, plan: Plan) -> None:
    typer.echo(
        f"{made.folder}: the site of {made.about['made']} (release {made.about['release']}); its "
        f"log of {made.size} leaves verifies"
    )
    if plan.next is not None:
        typer.echo(f"the old log stays as it is; a new one goes on as {settings.origin}")
    elif made.standing is None:
        typer.echo(
            "It is not known what was published since. If anything was, do not serve this site: "
            "type `radseal ledger continue NEW_ORIGIN --behind` first."
        )
    else:
        typer.echo(f"compared with what was published: {made.standing}; the log goes on")
    for there, what in ((made.keys, "keys/"), (made.vault, "the vault")):
        if not there:
            typer.echo(f"{what} was not restored: give its file before this site serves", err=True)
    if made.vault:
        typer.echo("erasures that were done after the backup must be done again: radseal erase")


@ledger.command("continue")
def continue_(
    origin: Annotated[str, typer.Argument(metavar="NEW_ORIGIN", help="Name of the new log.")],
    published: Published = None,
    behind: Annotated[
        bool, typer.Option("--behind", help="Others have seen leaves that we do not hold.")
    ] = False,
    current: Annotated[
        bool, typer.Option("--current", help="Nobody has seen anything newer than ours.")
    ] = False,
    reason: Annotated[str, typer.Option(help="restored, compromise, size, …")] = "restored",
    by: By = None,
    site_: SiteOption = None,
) -> None:
    """End the log and go on in a new one with new keys; typed again, it finishes what it began.

    Say one of --published, --behind, --current: a log of which others have seen more is left as
    it is; only a current one is closed.
    """
    folder = site.find_folder(site_)
    with succession.alone(folder):
        settings, told = site.read(folder), under_way(folder)
        if told is not None and told.origin != origin:
            raise WrongUse(f"it was begun with {told.origin}: type that again")
        if told is None and settings.origin != origin:
            newer = _newer(settings, published, behind=behind, current=current)
            succession.begin(settings, origin, newer, reason, by or os_user())
        elif told is None and goes_on_as(folder) != origin:
            raise WrongUse(f"the log is called {origin} already; choose another name")
        succession.finish(folder)
        with opened(folder, alone=True) as rooms:
            told = all_ended(rooms.site)[0].told
    end = "closed" if told.closed else "left as it was"
    typer.echo(f"{told.previous}: {end} at {told.size} leaves, in ledger-closed/{told.number}")
    typer.echo(f"{origin}: open; give its ledger.vkey to those who verify")


def _newer(
    settings: Site, published: str | None, *, behind: bool, current: bool
) -> Checkpoint | None:
    """Give what others have seen where that is not ours; None where ours is the newest."""
    if (published is not None) + behind + current != 1:
        raise WrongUse("say one of --published CHECKPOINT, --behind or --current")
    if current:
        return None
    store = store_of(settings)
    try:
        vkeys = own_vkeys(settings.folder)
        if published is not None:
            newer = fetch(published, vkeys)
            log = Log(settings.folder / "ledger", store, settings.origin, ())
            standing = compare(log, newer)
            return newer if standing in (Standing.BEHIND, Standing.OTHER) else None
        head = store.head()
        known = Checkpoint(settings.origin, head.size, head.root)
        if (settings.folder / "ledger" / "checkpoint").exists():
            file = fetch(str(settings.folder / "ledger"), vkeys)
            known = max(known, file, key=lambda point: point.size)
        return known
    finally:
        store.close()


@key.command("list")
def list_keys(site_: SiteOption = None, json_: JsonOption = False) -> None:
    """List the pairs that sign the log, newest first."""
    settings = site.read(site.find_folder(site_))
    found = rotation.signing(settings)
    if json_:
        print_json([{"pair": one.number, "vkeys": one.vkeys, **one.about} for one in found])
        return
    rows = [[str(one.number), one.about.get("at", ""), one.about.get("by", ""),
             " ".join(vkey.split("+")[1] for vkey in one.vkeys)] for one in found]  # fmt: skip
    print_table(["pair", "since", "by", "key ids"], rows, "no key")


@key.command()
def rotate(
    reason: Annotated[str, typer.Option(help="One word, for the log.")] = "rotation",
    by: By = None,
    site_: SiteOption = None,
) -> None:
    """Let new keys sign beside the old ones; stop `radseal serve` for it."""
    folder = site.find_folder(site_)
    with succession.alone(folder):
        added = rotation.add_pair(site.read(folder), by or os_user(), reason)
        with opened(folder, alone=True):
            pass  # says key.rotated, and publishes it under both pairs
    typer.echo("new keys sign beside the old ones" if added else "two pairs sign already")
    typer.echo("give ledger.vkey to those who verify and to witnesses; when all have it:")
    typer.echo("radseal key retire-old")


@key.command("retire-old")
def retire_old(by: By = None, site_: SiteOption = None) -> None:
    """End the overlap: the old keys are destroyed, the new ones sign alone."""
    folder = site.find_folder(site_)
    with succession.alone(folder):
        with opened(folder, alone=True) as rooms:
            dropped = rotation.drop_old_pairs(rooms, by or os_user())
        with opened(folder, alone=True) as rooms:
            settings = rooms.site  # says that the new pair signs alone
    if not dropped and rotation.signing(settings)[0].number == 1:
        raise Refused("there is only one pair; `radseal key rotate` makes a new one first")
    typer.echo("the new keys sign alone; readers with the old ones must fetch ledger.vkey")
