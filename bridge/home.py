"""A site folder: made once by `init`, opened by every command and by the service."""

from __future__ import annotations

import importlib.metadata
import socket
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy

from bridge import ambient, quorum
from bridge.ambient import Clock
from bridge.catalog import Catalog, Fitness, Lifecycle, Registrar
from bridge.engine import Engine, EngineClient
from bridge.errors import SettingsError, WrongUse
from bridge.files import Files, fsync_folder
from bridge.origins.ended import (
    Ended,
    all_ended,
    goes_on_as,
    number_of_log,
    store_of,
    under_way,
)
from bridge.origins.signing import (
    Pair,
    announced,
    folder_of,
    make_pair,
    pairs,
    read_secret,
    rotation_leaves,
    write_secret,
)
from bridge.record import Recorder
from bridge.report.identity import Gateway
from bridge.rooms import Rooms
from bridge.site import Site, read
from bridge.store.database import migrate, open_engine
from bridge.vault import Vault, new_site_key
from ledger import note
from ledger.errors import LedgerError, SecondSequencer
from ledger.log import Log, open_log
from ledger.sequencer import sequence

__all__ = ["VERSION", "create", "database_of", "open_rooms", "publish"]

VERSION = importlib.metadata.version("radseal")

_SITE_TOML = """\
# radseal site. Every key but name and origin has a default; see README.md for all of them.
name = {name}
origin = {origin}

[listener]
ae_title = "RADSEAL"
port = 11112
accept = "listed"        # only AE titles of [[sources]]; "any" takes every caller

# Who may send:
# [[sources]]
# name = "ct1"
# ae_title = "MODALITY1"

# Where results go:
# [[destinations]]
# name = "pacs"
# ae_title = "PACS"
# host = "10.0.0.6"
# port = 104
"""


def create(folder: Path, name: str, origin: str) -> Site:
    """Make a site: settings, keys, vault, tables. Raises WrongUse for a folder with content."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(f"{folder} is not empty; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = _SITE_TOML.format(name=_toml(name), origin=_toml(origin))
    (folder / "site.toml").write_text(text, encoding="utf-8")
    try:
        site = read(folder)
    except SettingsError:
        (folder / "site.toml").unlink()
        raise
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    write_secret(keys / "site.key", new_site_key(ambient.entropy))
    make_pair(keys, origin, 1, ambient.entropy, {})
    _publish_keys(site)
    Files(folder, site.instances, site.storage.watermark_mb).prepare()
    migrate(database_of(site))
    _vault(site).close()
    fsync_folder(keys)
    fsync_folder(folder)
    return site


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def database_of(site: Site) -> sqlalchemy.Engine:
    """Open the site's tables."""
    return open_engine(site.database_url)


def _pairs(site: Site) -> list[Pair]:
    return pairs(folder_of(site.folder, number_of_log(site.folder)), site.origin)


def _signers(site: Site) -> tuple[note.Signer, ...]:
    return tuple(signer for pair in _pairs(site) for signer in pair.signers)


def _publish_keys(site: Site) -> None:
    """Write the public halves where verifiers look for them."""
    vkeys = [note.vkey(signer) for signer in _signers(site)]
    policy = quorum.of_site(vkeys, quorum.asked(site.ledger.witnesses))
    for path, text in (
        (site.folder / "ledger.vkey", "".join(f"{key}\n" for key in vkeys)),
        (site.folder / "ledger.policy", str(policy)),
    ):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _vault(site: Site) -> Vault:
    where = site.database_url if site.on_postgresql else site.folder / "vault.db"
    return Vault(where, read_secret(site.folder / "keys" / "site.key"), ambient.entropy)


def open_ledger(site: Site) -> Log:
    """Open the site's log; raises SettingsError when the origin changed after its first leaf."""
    unfinished = under_way(site.folder)
    if unfinished is not None:
        raise SettingsError(
            f"the log is being continued as {unfinished.origin} and that was not finished: type "
            f"`radseal ledger continue {unfinished.origin}` again"
        )
    origin = goes_on_as(site.folder)
    if origin is not None and origin != site.origin:
        # An empty log would take any name. This one has its own, and what said another was read
        # before the log went on, or was edited since.
        raise SettingsError(
            f"the log goes on as {origin}, not as {site.origin}: start this again, and if origin "
            "in site.toml says otherwise, correct it"
        )
    try:
        log = open_log(site.folder / "ledger", store_of(site), site.origin, _signers(site))
    except LedgerError as error:
        raise SettingsError(f"the ledger cannot be opened: {error}") from None
    _publish_keys(site)
    return log


def open_rooms(site: Site, work: Engine | EngineClient, *, prepare: bool = False) -> Rooms:
    """Open a site's rooms; `prepare` migrates the tables and clears a dead listener's parts."""
    database = database_of(site)
    files = Files(site.folder, site.instances, site.storage.watermark_mb)
    if prepare:
        migrate(database)
        files.prepare()
    vault = _vault(site)
    node = socket.gethostname().split(".")[0][:40] or "node"
    ended, log = all_ended(site), open_ledger(site)
    recorder = Recorder(
        log, vault, node, ambient.now, ambient.new_leaf_id, [one.log for one in ended]
    )
    _open_books(site, recorder, ended)
    shelf = Catalog(database, site.folder)
    fitness = Fitness(database, shelf)
    return Rooms(
        site=site, database=database, files=files, vault=vault, record=recorder,
        catalog=shelf, fitness=fitness,
        registrar=Registrar(database, site.folder, recorder),
        lifecycle=Lifecycle(database, recorder, site.models, fitness.passed),
        work=work, clock=Clock(),
        gateway=Gateway(
            site_name=site.name, software_versions=VERSION,
            serial=note.vkey(_signers(site)[0]).split("+")[1],
        ),
    )  # fmt: skip


def _open_books(site: Site, recorder: Recorder, ended: Sequence[Ended]) -> None:
    """Say what a log says first, and which keys sign it: each once, whoever opens it."""
    generations = _pairs(site)
    body = {
        "schema": 1, "origin": site.origin,
        "vkeys": [announced(key) for key in generations[-1].vkeys],
    }  # fmt: skip
    if ended:
        told = ended[0].told
        recorder.say(
            "log.continued", f"log/continued/{told.number}",
            {**body, "previous": told.previous, "size": told.size, "root": told.root,
             "reason": told.reason, "by": told.by},
        )  # fmt: skip
        recorder.lineage.carry_unpublished()
    else:
        recorder.say("log.opened", "log/opened", body)
    for idem, said in rotation_leaves(generations):
        recorder.say("key.rotated", idem, said)


def publish(rooms: Rooms) -> None:
    """Publish what a command appended, unless a running service does it."""
    try:
        sequence(rooms.record.log, rooms.now())
    except SecondSequencer:
        return
