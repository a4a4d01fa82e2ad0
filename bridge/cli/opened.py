"""What every command shares: the --site option, opened rooms, tables and JSON."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bridge import site
from bridge.bundled import register_bundled
from bridge.engine import EngineClient
from bridge.home import open_rooms, publish
from bridge.rooms import Rooms
from bridge.turns import using

__all__ = [
    "JsonOption", "SiteOption", "bytes_shown", "leaves_shown", "opened", "os_user", "print_json",
    "print_table",
]  # fmt: skip

SiteOption = Annotated[
    Path | None, typer.Option("--site", help="Site folder (default: $RADSEAL_SITE, else here).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def os_user() -> str:
    """Give the name of the person at the machine, as the operating system says it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@contextmanager
def opened(folder: Path | None, *, alone: bool = False) -> Iterator[Rooms]:
    """Open the site's rooms for one command and publish what it appended.

    Nobody ends or moves the log meanwhile. `alone`: the caller is in `succession.alone` and sees
    to that himself. What is in the log cannot be asked any more afterwards.
    """
    where = site.find_folder(folder)
    with nullcontext() if alone else using(where):
        settings = site.read(where)
        rooms = open_rooms(settings, EngineClient(settings.database_url))
        try:
            register_bundled(rooms, os_user())
            yield rooms
        finally:
            try:
                publish(rooms)
            finally:
                for log in (rooms.record.log, *rooms.record.lineage.ended):
                    log.store.close()


@contextmanager
def leaves_shown() -> Iterator[Callable[[int, int], None]]:
    """Show how far a log is read, where a person waits: (leaves done, of how many)."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as shown:
        task = shown.add_task("leaves", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def bytes_shown(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a file is written or sent, where a person waits; told of bytes done."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.advance(task, count)


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    text = json.dumps(value, indent=2, default=str, ensure_ascii=False)
    # Half of a surrogate pair, from a file's name that is no UTF-8, becomes JSON's own escape.
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print rows for people; `empty` is said where there are none."""
    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    wide = max(100, console.width) if console.is_terminal else 250
    Console(width=wide).print(table)
