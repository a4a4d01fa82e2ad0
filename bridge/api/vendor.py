"""For vendors: deliver a package, see what became of one's own. Others see all models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Final

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from bridge.access import Permission, Principal
from bridge.api.doors import House, Requires, RequiresToken
from bridge.api.rooms import ModelLine
from bridge.errors import NotFound, WrongUse

PATH: Final = "/models"
_SILENT_SECONDS: Final = 60.0
_SLOWEST: Final = 1 << 17  # bytes a second on the whole: who drips holds the door for all others

router = APIRouter(prefix=PATH)
Reader = Annotated[Principal, Depends(Requires(Permission.MODELS_READ))]
Sender = Annotated[Principal, Depends(RequiresToken(Permission.MODELS_PUSH))]


@router.get("", name="models")
@router.get(".json", name="models_json")
def models(who: Reader, rooms: House) -> Response:
    """List models with their states, newest first; a vendor's own ones only."""
    return JSONResponse({"models": [_as_json(line) for line in rooms.models(who)]})


@router.get("/{digest}", name="model")
def model(digest: str, who: Reader, rooms: House) -> Response:
    """Give one model by its digest."""
    for line in rooms.models(who):
        if line.digest == digest:
            return JSONResponse(_as_json(line))
    raise NotFound("No model of yours has this digest here.")


@router.post("", name="push", status_code=201)
def push(request: Request, who: Sender, rooms: House) -> Response:
    """Take a package as application/zip (NAME/… and NAME.sig), look at it, register it.

    201 registered, 200 it was registered before, 409 with the first fault: file, key and fix.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/zip":
        raise WrongUse("Send the zip of PKG and PKG.sig itself, as application/zip.")
    line, new = rooms.bring(_body(request), who)
    return JSONResponse(_as_json(line), 201 if new else 200)


def _as_json(line: ModelLine) -> dict[str, Any]:
    return {**asdict(line), "registered_at": line.registered_at.isoformat()}


def _body(request: Request) -> Iterator[bytes]:
    """Give the body as it comes; raises WrongUse where the sender stops, drips or falls silent."""
    more, size, began = True, 0, time.monotonic()
    while more:
        try:
            message = anyio.from_thread.run(_next, request)
        except TimeoutError:
            raise WrongUse(f"Nothing came for {_SILENT_SECONDS:.0f} s; send it again.") from None
        if message["type"] == "http.disconnect":
            raise WrongUse("The sender went away before the end.")
        size += len(message.get("body", b""))
        if time.monotonic() - began > _SILENT_SECONDS + size / _SLOWEST:
            raise WrongUse(f"It comes too slowly; {_SLOWEST >> 10} KB a second are needed.")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _next(request: Request) -> Any:
    with anyio.fail_after(_SILENT_SECONDS):
        return await request.receive()
