"""What a bundle discloses of one study: its key, consent documents, requests, inputs, results.

Whoever holds K_s can recompute every commitment of this study from the texts and files he was
given, and nothing of another study. Each of a study's chains (a corrected identity begins
another) has its own K_s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.commitments import StudyKey, document_commitment, instance_commitment
from bridge.record import Chain
from bridge.rooms import Rooms
from bridge.store import arrivals, catalog, decisions, work
from bridge.store.arrivals import HeldRow, StudyRow
from bridge.store.database import reading
from bridge.store.work import RouteRow
from bridge.vault import SubjectErased
from ledger import leaf, merkle

__all__ = ["Places", "input_path", "members", "results"]

Places = Mapping[str, int]
"""Index of each leaf, by its hash in base64."""


@dataclass(frozen=True, slots=True)
class _Study:
    rooms: Rooms
    row: StudyRow
    chains: Mapping[str, Chain]
    records: Mapping[str, Mapping[str, Any]]
    places: Places


def members(
    rooms: Rooms,
    study: StudyRow,
    chains: Mapping[str, Chain],
    records: Mapping[str, Mapping[str, Any]],
    places: Places,
    *,
    images: Sequence[str],
    asked: Mapping[str, bytes],
) -> dict[str, bytes | Path]:
    """Give the members under disclosed/. `asked` are further requests by the leaf they made.

    `chains` by study alias. With `images` only these SOPInstanceUIDs are shown, each with the
    path that leads from it to the input's root; the others stay unknown.
    """
    one = _Study(rooms, study, chains, records, places)
    found: dict[str, bytes | Path] = {"disclosed/study.key": _keys(chains)}
    for text in _documents(one):
        found[f"disclosed/consent/{hashlib.sha256(text).hexdigest()}.json"] = text
    for ref, request in {**_requests(one), **asked}.items():
        found[f"disclosed/requests/{places[ref]:08d}.json"] = request
    found["disclosed/instances.json"] = _instances(one, images)
    return found


def _keys(chains: Mapping[str, Chain]) -> bytes:
    return "".join(f"{chains[alias].key.hex()}\n" for alias in sorted(chains)).encode()


def results(rooms: Rooms, study: StudyRow) -> dict[str, bytes | Path]:
    """Give the results as they were sent: with their receipts where they have them."""
    with reading(rooms.database) as connection:
        rows = work.artifacts_of_study(connection, study.id)
    found: dict[str, bytes | Path] = {}
    for row in rows:
        sent = rooms.files.stamped(study.id, row.sop_instance_uid)
        path = sent if sent.exists() else rooms.files.artifact(study.id, row.sop_instance_uid)
        if path.exists():
            found[f"disclosed/artifacts/{row.sop_instance_uid}.dcm"] = path
    return found


def _documents(one: _Study) -> list[bytes]:
    """Give the texts that the decisions of this study were made from, byte for byte."""
    checks = [r["body"] for r in one.records.values() if r["type"] == "consent.checked"]
    wanted = {text for body in checks for texts in body.get("documents", ()) for text in texts}
    named = {m["leaf"] for body in checks for m in body.get("matched", ()) if "leaf" in m}
    found = []
    with reading(one.rooms.database) as connection:
        rows = catalog.documents_of(connection, _subjects(one))
    for row in rows:
        try:
            text = one.rooms.vault.open(row.subject_ref, row.sealed)
        except SubjectErased:
            continue
        tied = {
            one.rooms.record.text(document_commitment(chain.key, text))
            for chain in one.chains.values()
        }
        if tied & wanted or row.leaf in named:
            found.append(text)
    return found


def _subjects(one: _Study) -> list[str]:
    """Give the vault's references of every patient that this study was ever of."""
    with reading(one.rooms.database) as connection:
        on_images = arrivals.held_identities(connection, one.row.id)
        generations = [
            found.subject_ref
            for number in range(one.row.generation + 1)
            if (found := arrivals.generation(connection, one.row.id, number)) is not None
        ]
    patients = [p for p in {*one.row.identities, *on_images} if p.identified]
    subjects = [one.rooms.subject(p, one.row.study_instance_uid) for p in patients]
    return sorted({*generations, *subjects})


def _requests(one: _Study) -> dict[str, bytes]:
    with reading(one.rooms.database) as connection:
        rows = decisions.decisions_of(connection, one.row.id)
    asked = {_standing(one, row.leaf): row.request.encode() for row in rows}
    return {ref: request for ref, request in asked.items() if ref in one.places}


def _standing(one: _Study, ref: str) -> str:
    """Give the leaf as it stands now: carried, if it was said in a log that ended."""
    return leaf.ref(one.rooms.record.lineage.standing(leaf.unref(ref))[1])


def _instances(one: _Study, images: Sequence[str]) -> bytes:
    with reading(one.rooms.database) as connection:
        routes = work.routes_of(connection, one.row.id)
        held = {row.arrival: row for row in arrivals.by_arrival(connection, one.row.id)}
    inputs = []
    for route in routes:
        said = one.rooms.record.find(f"input/{route.id}")
        ref = None if said is None else _standing(one, said)
        if ref is None or ref not in one.places:
            continue
        chain = one.chains.get(one.records[ref]["study"])
        if chain is not None:
            inputs.append({"leaf": one.places[ref], **_input(chain, route, held, images)})
    made = {"study": one.row.study_instance_uid, "inputs": inputs}
    return (json.dumps(made, indent=1, sort_keys=True) + "\n").encode()


def _input(
    chain: Chain, route: RouteRow, held: Mapping[str, HeldRow], images: Sequence[str]
) -> dict[str, Any]:
    names = [arrival for files in route.arrivals.values() for arrival in files]
    if any(name not in held for name in names):
        return {"missing": True}
    pairs = sorted((held[name].sop_instance_uid, held[name].dataset_sha256) for name in names)
    if not images:
        return {"instances": [{"uid": uid, "sha256": digest} for uid, digest in pairs]}
    shown = [
        {
            "uid": uid, "sha256": digest, "place": place,
            "path": [value.hex() for value in input_path(chain.key, pairs, place)],
        }
        for place, (uid, digest) in enumerate(pairs)
        if uid in images
    ]  # fmt: skip
    return {"size": len(pairs), "shown": shown}


def input_path(key: StudyKey, pairs: Sequence[tuple[str, str]], place: int) -> list[bytes]:
    """Give the path from one image's commitment to the root of its input (record.input_root).

    `pairs` are (SOPInstanceUID, SHA-256 in hex) in order. With K_s and the path an image is shown
    to be in the input; of the others only hashes of commitments are seen.
    """
    hashes = [
        merkle.leaf_hash(instance_commitment(key, bytes.fromhex(digest))) for _, digest in pairs
    ]

    def perfect(level: int, index: int) -> bytes:
        return merkle.root(hashes[index << level : (index + 1) << level])

    return merkle.inclusion_proof(place, len(hashes), perfect)
