"""Commands about the site itself: init, serve, worker, doctor, status, login, token, peer."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from bridge import ambient, logs, site
from bridge.access import Access, Role
from bridge.catalog.standing import alias, why_out
from bridge.cli.opened import JsonOption, SiteOption, opened, os_user, print_json, print_table
from bridge.errors import NotFound, SettingsError, WrongUse
from bridge.home import create, database_of
from bridge.origins.published import own_vkeys
from bridge.peers import dicom
from bridge.rooms import Rooms
from bridge.service import Service, serve, work
from bridge.store import catalog, story
from bridge.store.database import migrate, reading
from bridge.store.people import People
from bridge.witnessing import cosigning, witnesses
from ledger.errors import LedgerError
from ledger.verify import verify_log
from models import registry

__all__ = ["peer", "register", "token"]

_LONGEST_NAME = 200
token = typer.Typer(no_args_is_help=True, help="Keys for machines and people.")
peer = typer.Typer(no_args_is_help=True, help="The systems that this site speaks with.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (init, serve_site, worker, doctor, status, login):
        name = "serve" if command is serve_site else command.__name__
        app.command(name)(command)


def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    name: Annotated[str, typer.Option(help="What people call the site.")] = "Radiology",
    origin: Annotated[
        str, typer.Option(help="Name of the log: host/path, without a scheme.")
    ] = "radseal.example.org/radiology",
    json_: JsonOption = False,
) -> None:
    """Make a new site: settings, keys, vault, tables; its log opens when it is first used."""
    made = create(folder.resolve(), name, origin)
    if json_:
        print_json({"site": str(made.folder), "origin": made.origin})
        return
    typer.echo(f"{made.folder} is ready.")
    typer.echo(f"Edit {folder}/site.toml, then: radseal serve --site {folder}")
    typer.echo(f"radseal model list --site {folder} shows the models that we ship; a second person")
    typer.echo("approves and activates one: radseal model approve MODEL --by WHO")


def serve_site(site_: SiteOption = None) -> None:
    """Serve the site: DICOM listener, worker, pages and API, until Ctrl-C."""
    logs.setup()
    serve(site.read(site.find_folder(site_)), _say_ready)


def _say_ready(service: Service) -> None:
    link = _login_link(service.rooms.site, People(service.rooms.database), Role.ADMINISTRATOR)
    listener = service.rooms.site.listener
    typer.echo(f"DICOM  {listener.ae_title} on {listener.host}:{listener.port}")
    typer.echo(f"pages  {link}  (once, within 5 minutes)")


def _login_link(settings: site.Site, people: People, role: Role) -> str:
    secret = Access(people, ambient.entropy).login_secret(os_user(), role, ambient.now())
    # The link is for the person at this machine, also where HTTP listens on every address.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.http.host, settings.http.host)  # noqa: S104
    return f"http://{host}:{settings.http.port}/login/{secret}"


def worker(site_: SiteOption = None) -> None:
    """Be one more worker of a site on PostgreSQL, until Ctrl-C."""
    logs.setup()
    work(site.read(site.find_folder(site_)))


def login(
    role: Annotated[Role, typer.Option(help="What the person may do.")] = Role.ADMINISTRATOR,
    site_: SiteOption = None,
) -> None:
    """Print a one-time link with which the person at this machine signs in."""
    settings = site.read(site.find_folder(site_))
    typer.echo(_login_link(settings, People(database_of(settings)), role))


@token.command("add")
def token_add(
    name: Annotated[str, typer.Argument(help="Who or what will use it.")],
    role: Annotated[Role, typer.Option(help="What it may do.")],
    site_: SiteOption = None,
) -> None:
    """Make a token; it is shown once, only its hash is kept."""
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise WrongUse(f"NAME: write 1 to {_LONGEST_NAME} printable characters; leaves name it")
    settings = site.read(site.find_folder(site_))
    access = Access(People(database_of(settings)), ambient.entropy)
    typer.echo(access.issue_token(name, role, ambient.now()))


@peer.command("echo")
def peer_echo(
    name: Annotated[str, typer.Argument(help="Name of a source or destination.")],
    site_: SiteOption = None,
) -> None:
    """C-ECHO a source or destination; exit 1 if it does not answer."""
    settings = site.read(site.find_folder(site_))
    found = [p for n, p in _peers(settings) if n == name]
    if not found:
        raise NotFound(f"site.toml has no source or destination {name} with host and port")
    ok, words = dicom.echo(found[0])
    typer.echo(f"{name}: {words}")
    raise typer.Exit(0 if ok else 1)


def _peers(settings: site.Site) -> Iterator[tuple[str, dicom.Peer]]:
    calling = settings.listener.ae_title
    for destination in settings.destinations:
        yield (
            destination.name,
            dicom.Peer(destination.ae_title, destination.host, destination.port, calling),
        )
    for source in settings.sources:
        if source.host and source.port is not None:
            yield source.name, dicom.Peer(source.ae_title, source.host, source.port, calling)


def status(site_: SiteOption = None, json_: JsonOption = False) -> None:
    """Say how many studies stand where, and how long the log is."""
    with opened(site_) as rooms, reading(rooms.database) as connection:
        counts = {str(state): n for state, n in story.counts(connection).items()}
        models = [m for m in catalog.list_models(connection)
                  if m.state in (*registry.ROUTED, registry.State.SUSPENDED)]  # fmt: skip
        size = rooms.record.log.size()
        waiting = rooms.files.waiting()
        told = witnesses.seen(rooms.site, size, rooms.now())
    if json_:
        asked = {one.name: one.state for one in told.lines}
        print_json({"studies": counts, "ledger_size": size, "inbox": waiting,
                    "witnessed_size": told.witnessed, "witnesses": asked,
                    "models": {f"{m.id}@{m.version}": m.state for m in models}})  # fmt: skip
        return
    print_table(["state", "studies"], [[s, str(n)] for s, n in sorted(counts.items())],
                "no study was received yet")  # fmt: skip
    typer.echo(f"ledger: {size} leaves published; inbox: {waiting} files to index")
    rules = rooms.site.models
    for m in models:
        out = why_out(m, approvals=rules.approvals, proven=rules.proven)
        typer.echo(f"model {m.id} {m.version}: {alias(m) or f'out of routing: {out}'}")
    for line in told.lines:
        typer.echo(f"witness {line.name}: {line.state}: {line.words}")


def doctor(site_: SiteOption = None, json_: JsonOption = False) -> None:
    """Check disk, keys, database, ledger, models and peers; each failure says the fix."""
    settings = site.read(site.find_folder(site_))
    migrate(database_of(settings))
    with opened(settings.folder) as rooms:
        checks = list(_checks(rooms))
    if json_:
        print_json([{"check": n, "ok": ok, "words": w} for n, ok, w in checks])
    else:
        for name, ok, words in checks:
            typer.echo(f"{'ok  ' if ok else 'FAIL'} {name}: {words}")
    raise typer.Exit(0 if all(ok for _, ok, _ in checks) else 1)


def _ports(settings: site.Site) -> Iterator[tuple[str, bool, str]]:
    """Say whether the service answers on its ports, or could open them."""
    listener, http = settings.listener, settings.http
    for what, host, port in (("DICOM", listener.host, listener.port),
                             ("HTTP", http.host, http.port)):  # fmt: skip
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                served = error.errno == errno.EADDRINUSE
                words = "in use: by our service, or choose another port" if served else str(error)
                yield f"port {what} {port}", served, words
            else:
                yield f"port {what} {port}", True, "free; `radseal serve` opens it"


def _as_witness(folder: Path) -> tuple[str, bool, str]:
    """Say whether the witness that this site is for others opens, and saw no log split."""
    try:
        cosigner = cosigning.open_witness(folder)
    except SettingsError as error:
        return "our witness", False, str(error)
    try:
        kept = cosigner.kept()
    finally:
        cosigner.close()
    split = [one.origin for one in kept if one.split is not None]
    words = f"cosigns {len(cosigning.trusted(folder))} logs, has seen {len(kept)}"
    if split:
        words = f"{split[0]} has signed two histories: radseal witness list {folder} --json"
    return "our witness", not split, words


def _checks(rooms: Rooms) -> Iterator[tuple[str, bool, str]]:
    settings = rooms.site
    free = shutil.disk_usage(settings.folder).free // 2**20
    yield "disk", not rooms.files.is_full(), f"{free} MB free"
    loose = [p.name for p in (settings.folder / "keys").iterdir() if p.stat().st_mode & 0o077]
    yield "keys", not loose, f"chmod 600 keys/{loose[0]}" if loose else "only ours to read"
    yield "database", True, "opened, schema current"
    try:
        vkeys = own_vkeys(settings.folder)
        report = verify_log(settings.folder / "ledger", vkeys)
        yield "ledger", True, f"{report.size} leaves verified"
    except LedgerError as error:
        fresh = rooms.record.log.size() == 0
        yield "ledger", fresh, "nothing published yet" if fresh else f"{error}"
    for line in witnesses.seen(settings, rooms.record.log.size(), rooms.now()).lines:
        yield f"witness {line.name}", line.ok, line.words
    if settings.witness_folder is not None:
        yield _as_witness(settings.witness_folder)
    with reading(rooms.database) as connection:
        active = catalog.list_models(connection, *registry.ROUTED)
        suspended = catalog.list_models(connection, registry.State.SUSPENDED)
    yield (
        "models",
        bool(active),
        ", ".join(f"{m.id} {m.version} ({alias(m)})" for m in active)
        or ("no model is active: radseal model approve, then activate"),
    )
    for row, _ in rooms.catalog.active():
        tested = rooms.fitness.test(row, rooms.now())
        yield f"self-test {row.id}", tested.passed, tested.text
    for row in suspended:
        rules = settings.models
        why = why_out(row, approvals=rules.approvals, proven=rules.proven)
        yield f"model {row.id}", False, f"{row.version} is out of routing: {why}"
    for row, why in rooms.catalog.broken():
        yield f"model {row.id}", False, why
    for name, one in _peers(settings):
        ok, words = dicom.echo(one)
        yield f"peer {name}", ok, words
    yield from _ports(settings)
    if not settings.sources and settings.listener.accept == "listed":
        yield "sources", False, 'nobody may send: add [[sources]] or accept = "any"'
