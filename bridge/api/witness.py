"""For other hospitals' logs: tlog-witness, where this house is a witness. Anonymous by design.

A request is authorised by the log's signature, and what is shown are checkpoints, which are
public where they were made: a log whose witness contradicts it must be able to see what it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response

from bridge.access import Permission
from bridge.api.doors import Requires
from bridge.errors import NotFound, SettingsError
from ledger.errors import StorageFailed
from ledger.witness import TEXT_TYPE, Reply

PREFIX = "/witness"


class Witness(Protocol):
    """Who answers: `ledger.cosigner.Cosigner`."""

    def add_checkpoint(self, body: bytes, time: int) -> Reply:
        """Answer a request at POSIX `time`."""

    def checkpoint(self, address: str) -> str | None:
        """Return the cosigned checkpoint of the log with this address."""


async def _body(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


def serve(app: FastAPI, witness: Witness, now: Callable[[], datetime]) -> None:
    """Add the two routes of a witness to an application."""
    router = APIRouter(prefix=PREFIX)

    @router.post(
        "/add-checkpoint",
        name="add-checkpoint",
        dependencies=[Depends(Requires(Permission.WITNESS_SUBMIT))],
    )
    def add_checkpoint(body: Body) -> Response:
        """Cosign a log's newer checkpoint, or say why not."""
        try:
            reply = witness.add_checkpoint(body, int(now().timestamp()))
        except (StorageFailed, SettingsError):
            # Its words are for the operator: `radseal witness list` says them.
            return Response("the witness cannot answer now, try again\n", 503)
        # By hand: the exact type is the protocol's, and Starlette would add a charset to it.
        return Response(reply.body, reply.status, {"Content-Type": reply.media_type})

    @router.get(
        "/{address}/checkpoint",
        name="cosigned",
        dependencies=[Depends(Requires(Permission.WITNESS_READ))],
    )
    def cosigned(address: str) -> Response:
        """Give what was last cosigned of the log whose origin has this SHA-256."""
        text = witness.checkpoint(address)
        if text is None:
            raise NotFound("This witness has cosigned nothing of such a log.")
        return Response(text, headers={"Content-Type": TEXT_TYPE, "Cache-Control": "no-cache"})

    app.include_router(router)
