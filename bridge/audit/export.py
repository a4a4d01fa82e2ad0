"""Giving a study's records away: one bundle, asked of consent first, said in the log before.

    ask consent (or name a legal basis) → gather the leaves → what is disclosed, and its root →
    access.disclosed under a published checkpoint → proofs under one checkpoint → the file,
    fsynced, then under its name

So the log never lacks a disclosure that happened. A crash in between leaves a disclosure that
the log tells of and nobody received; typed again it is another one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.audit import disclose, gather, readme
from bridge.consent.purposes import act_reason, known
from bridge.errors import NotFound, Refused, StorageFull, WrongUse
from bridge.files import fsync_folder
from bridge.permit import CONSENT, Release, ask_release
from bridge.record import Chain
from bridge.rooms import Rooms
from bridge.store import arrivals, catalog, story
from bridge.store.arrivals import StudyRow
from bridge.store.database import hold, reading, writing
from bridge.vault import SubjectErased
from ledger import archive, bodies, bundle, leaf, note
from ledger.checkpoint import Checkpoint
from ledger.errors import Malformed

__all__ = ["Made", "Wish", "export"]

COVERED_WITHIN = 30.0
WITNESSED_WITHIN = 10.0
_ROOM = 1 << 20

Members = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Wish:
    """Who gives what to whom, and why.

    `by` gives, `account` is the operating system's; `purpose` is a code of v3-ActReason;
    `basis` is the legal basis that stands instead of consent, "" where consent is asked.
    `study_key` discloses K_s and what belongs to it; `images` shows only these of the input;
    `results` adds the delivered files.
    """

    study: str
    by: str
    account: str
    to: str
    purpose: str
    basis: str = ""
    study_key: bool = False
    images: tuple[str, ...] = ()
    results: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that was written: the leaves that say so, and what it holds."""

    path: Path
    leaves: tuple[str, ...]
    records: int
    witnessed: bool
    left_out: tuple[str, ...]


def export(
    rooms: Rooms,
    wish: Wish,
    output: Path,
    *,
    publish: Callable[[Rooms], None],
    new_id: Callable[[], str],
) -> Made:
    """Write the bundle of a study to `output`, which must not exist.

    Raises WrongUse for words that do not fit, NotFound for an unknown study, Refused where
    consent denies it, StorageFull, and NotCovered while the log publishes nothing.
    """
    _check(wish, output)
    with reading(rooms.database) as connection:
        study_id = story.find(connection, wish.study)
    if study_id is None:
        raise NotFound("no such study; see `radseal studies`")
    with rooms.files.turns.share(study_id):  # not while it is being erased
        return _export(rooms, wish, study_id, output, publish, f"release/{new_id()}")


def _export(
    rooms: Rooms,
    wish: Wish,
    study_id: str,
    output: Path,
    publish: Callable[[Rooms], None],
    key: str,
) -> Made:
    study, chains, left_out = _study(rooms, study_id)
    newest = next(reversed(chains.values()))
    release = _released(rooms, wish, study, key, publish)
    gather.bring(rooms.record, chains.values())
    records = gather.leaves_of(rooms.record.log, list(chains))
    publish(rooms)
    rooms.record.wait_covered(list(records), COVERED_WITHIN)
    places = {ref: _place(rooms, ref) for ref in records}
    asked = {release.answer.leaf: release.request} if release else {}
    members = _objects(rooms, wish, study, chains, records, places, asked)
    _room(members, output)
    said = _say(rooms, wish, chains, newest, members, key, release, len(records))
    publish(rooms)
    rooms.record.wait_covered(said, COVERED_WITHIN)
    witnessed = _prove(rooms, [*records, *said], members)
    _write(members, output)
    return Made(output, tuple(said), len(records) + len(said), witnessed, left_out)


def _check(wish: Wish, output: Path) -> None:
    if not known(act_reason(wish.purpose)):
        raise WrongUse("--purpose is no code of v3-ActReason; write for example HQUALIMP or HLEGAL")
    for name, text in (("by", wish.by), ("to", wish.to), ("basis", wish.basis or "-")):
        if not bodies.LABEL.holds(text):
            raise WrongUse(f"--{name} must be {bodies.LABEL.words}")
    if (wish.images or wish.results) and not wish.study_key:
        raise WrongUse("--image and --with-artifacts need --disclose study")
    if output.exists():
        raise WrongUse(f"{output} is there already; choose another name")
    if not output.parent.is_dir():
        raise WrongUse(f"{output.parent} is no folder; make it first")


def _study(rooms: Rooms, study_id: str) -> tuple[StudyRow, dict[str, Chain], tuple[str, ...]]:
    """Give the study, its chains by alias with the newest generation's last, what is lost."""
    with reading(rooms.database) as connection:
        if story.find(connection, study_id) is None:
            raise NotFound("this study was erased just now")
        study = arrivals.study(connection, study_id)
        generations = [
            found
            for number in range(1, study.generation + 1)
            if (found := arrivals.generation(connection, study_id, number)) is not None
        ]
    chains: dict[str, Chain] = {}
    left_out: list[str] = []
    for one in generations:
        try:
            chain = rooms.record.chain(one.subject_ref, study.study_instance_uid)
        except SubjectErased:
            left_out.append(f"generation {one.generation}: its patient's key was destroyed")
            continue
        chains.pop(chain.study, None)
        chains[chain.study] = chain
    if not chains:
        raise Refused("nothing can be said of this study any more: its patient's key was destroyed")
    return study, chains, tuple(left_out)


def _released(
    rooms: Rooms, wish: Wish, study: StudyRow, key: str, publish: Callable[[Rooms], None]
) -> Release | None:
    """Ask consent; None where a legal basis stands instead of it."""
    if wish.basis:
        return None
    with reading(rooms.database) as connection:
        newest = arrivals.generation(connection, study.id, study.generation)
    if newest is None:
        raise NotFound("this study has no images yet")
    release = ask_release(
        rooms, study, newest.subject_ref, purpose=wish.purpose, recipient=wish.to, key=key
    )
    if not release.answer.permitted:
        publish(rooms)
        raise Refused(
            f"not exported: {release.answer.words}; where the law permits it without consent, "
            "name the legal basis with --basis"
        )
    return release


def _place(rooms: Rooms, ref: str) -> int:
    place = rooms.record.covered(ref)
    if place is None:
        raise Refused("the log lost its checkpoint while the bundle was made; see `radseal status`")
    return place


def _objects(
    rooms: Rooms,
    wish: Wish,
    study: StudyRow,
    chains: Mapping[str, Chain],
    records: Mapping[str, Mapping[str, Any]],
    places: Mapping[str, int],
    asked: Mapping[str, bytes],
) -> Members:
    """Give every member that the leaf of this disclosure binds."""
    entries = [
        (bundle.Record(places[ref], leaf.unref(ref), record), gather.describe(record))
        for ref, record in records.items()
    ]
    made: Members = {
        "README.txt": readme.TEXT.encode(),
        "index.json": bundle.index_json(rooms.site.origin, entries),
        "ledger.vkey": _copy(rooms, "ledger.vkey"),
        "policy": _copy(rooms, "ledger.policy"),
    }
    if wish.study_key:
        made |= disclose.members(
            rooms, study, chains, records, places, images=wish.images, asked=asked
        )
    if wish.results:
        made |= disclose.results(rooms, study)
    return made


def _copy(rooms: Rooms, name: str) -> bytes:
    return readme.COPY.encode() + (rooms.folder / name).read_bytes()


def _say(
    rooms: Rooms,
    wish: Wish,
    chains: Mapping[str, Chain],
    newest: Chain,
    members: Members,
    key: str,
    release: Release | None,
    records: int,
) -> list[str]:
    """Append access.disclosed in each chain, unless a document that permitted was withdrawn."""
    digests = {name: _sha256(content) for name, content in members.items()}
    body = {
        "recipient": wish.to, "purpose": wish.purpose, "by": wish.by, "authn": "asserted",
        "basis": wish.basis or (release.basis if release else "-"), "format": bundle.FORMAT,
        "what": {
            "records": records, "study_key": wish.study_key,
            **{
                kind: sum(name.startswith(f"disclosed/{kind}/") for name in members)
                for kind in ("consent", "requests", "artifacts")
            },
        },
    }  # fmt: skip
    said = []
    with writing(rooms.database) as connection:
        hold(connection, CONSENT)
        if release and catalog.any_withdrawn(connection, release.documents):
            raise Refused("consent was withdrawn while the bundle was made; nothing was exported")
        for alias, chain in chains.items():
            root = bundle.objects_root(digests, chain.key if wish.study_key else None)
            mine = release is not None and chain is newest
            said.append(
                rooms.record.say(
                    "access.disclosed", f"disclosed/{key}/{alias[-16:]}",
                    {**body, "root": rooms.record.text(root)}, chain=chain,
                    actor={"kind": "user", "id": wish.account},
                    refs=[("consent.checked", release.answer.leaf)] if mine and release else [],
                )
            )  # fmt: skip
    return said


def _sha256(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _prove(rooms: Rooms, refs: Sequence[str], members: Members) -> bool:
    """Add checkpoint, proofs and MANIFEST; whether witnesses cosigned that checkpoint."""
    places = [_place(rooms, ref) for ref in refs]
    witnessed = _witnessed(rooms, max(places))
    text = witnessed or rooms.record.log.checkpoint_text()
    for place, proof in zip(places, rooms.record.proofs(refs, text), strict=True):
        members[f"records/{place:08d}.tlog-proof"] = proof.encode()
    members["checkpoint"] = text.encode()
    if witnessed:
        members["checkpoint.witnessed"] = text.encode()
    members["MANIFEST"] = bundle.manifest({name: _sha256(one) for name, one in members.items()})
    return bool(witnessed)


def _witnessed(rooms: Rooms, place: int) -> str:
    """Give the cosigned checkpoint once it covers this leaf, else ""; waits where one may come."""
    until = time.monotonic() + (WITNESSED_WITHIN if rooms.site.ledger.witnesses else 0.0)
    path = rooms.record.log.folder / "checkpoint.witnessed"
    while True:
        with suppress(OSError, UnicodeDecodeError, Malformed):
            text = path.read_text(encoding="utf-8")
            point = Checkpoint.parse(note.parse(text)[0])
            if point.origin == rooms.record.log.origin and point.size > place:
                return text
        if time.monotonic() >= until:
            return ""
        time.sleep(0.1)


def _room(members: Members, output: Path) -> None:
    """Refuse before anything is said where the disk cannot hold the file."""
    size = sum(
        len(one) if isinstance(one, bytes) else one.stat().st_size for one in members.values()
    )
    if size > archive.MOST_BYTES - _ROOM * 64:
        raise Refused("the bundle would have more than 4 GiB; leave --with-artifacts away")
    if shutil.disk_usage(output.parent).free < size + 64 * _ROOM:
        raise StorageFull(f"the disk of {output.parent} has no room for the bundle; free some")


def _write(members: Members, output: Path) -> None:
    """Write beside the final name, fsync, rename: what has the name is whole."""
    part = output.with_name(f".{output.name}.part")
    part.unlink(missing_ok=True)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            archive.write(file, members)
            file.flush()
            os.fsync(file.fileno())
        part.rename(output)
        fsync_folder(output.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageFull(
            f"the bundle could not be written ({error.strerror}); the log says that it was "
            "disclosed, nobody received it"
        ) from error
