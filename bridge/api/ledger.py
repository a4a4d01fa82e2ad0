"""For anybody with a verifier: the log's own files, read-only, as tlog-tiles wants them."""

from __future__ import annotations

import re
from dataclasses import asdict

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from bridge.access import Permission
from bridge.api import asks
from bridge.api.doors import House, Paper, Requires
from bridge.api.rooms import Rooms
from bridge.errors import NotFound

router = APIRouter(prefix="/ledger")
_INDEX = re.compile(r"(x\d{3}/)*\d{3}(\.p/([1-9]|[1-9]\d|1\d\d|2[0-4]\d|25[0-5]))?")
_LEVEL = re.compile(r"[0-9]|[1-5]\d|6[0-3]")


@router.get("", name="log", dependencies=[Depends(Requires(Permission.LOG_READ))])
@router.get(".json", name="log_json", dependencies=[Depends(Requires(Permission.LOG_READ))])
def log(request: Request, rooms: House, pages: Paper) -> Response:
    """Show how far the log is and how its witnesses stand."""
    facts = rooms.log()
    if asks.wants_json(request):
        return JSONResponse({"origin": rooms.site.origin, **asdict(facts)})
    return pages.answer(request, "ledger.html", {"log": facts, "origin": rooms.site.origin})


@router.get(
    "/checkpoint",
    name="checkpoint",
    dependencies=[Depends(Requires(Permission.CHECKPOINT_READ))],
)
def checkpoint(rooms: House) -> Response:
    """Give the newest signed checkpoint."""
    return _file(rooms, "checkpoint", "text/plain; charset=utf-8", "no-cache")


@router.get(
    "/checkpoint.witnessed",
    name="witnessed",
    dependencies=[Depends(Requires(Permission.CHECKPOINT_READ))],
)
def witnessed(rooms: House) -> Response:
    """Give the newest checkpoint that a quorum of the site's witnesses has cosigned."""
    return _file(rooms, "checkpoint.witnessed", "text/plain; charset=utf-8", "no-cache")


@router.get(
    "/tile/entries/{index:path}",
    name="entries",
    dependencies=[Depends(Requires(Permission.ENTRIES_READ))],
)
def entries(index: str, rooms: House) -> Response:
    """Give a bundle of leaves."""
    return _tile(rooms, "entries", index)


@router.get(
    "/tile/{level}/{index:path}",
    name="tile",
    dependencies=[Depends(Requires(Permission.TILES_READ))],
)
def tile(level: str, index: str, rooms: House) -> Response:
    """Give a tile of hashes."""
    if _LEVEL.fullmatch(level) is None:
        raise NotFound
    return _tile(rooms, level, index)


def _tile(rooms: Rooms, level: str, index: str) -> Response:
    if len(index) > 64 or _INDEX.fullmatch(index) is None:
        raise NotFound
    kept = "private, max-age=86400, immutable"
    return _file(rooms, f"tile/{level}/{index}", "application/octet-stream", kept)


def _file(rooms: Rooms, path: str, media_type: str, cache: str) -> Response:
    data = rooms.ledger_file(path)
    if data is None:
        raise NotFound("The log has not published this.")
    return Response(data, media_type=media_type, headers={"Cache-Control": cache})
