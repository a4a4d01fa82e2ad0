"""For whoever must prove something: receipts to take away and verify without us."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from bridge.access import Permission, Principal
from bridge.api import asks
from bridge.api.doors import House, Requires

router = APIRouter(prefix="/receipts")
Auditor = Annotated[Principal, Depends(Requires(Permission.RECEIPTS_READ))]


@router.get("/{sop}.tlog-proof", name="receipt")
def receipt(sop: asks.UidPath, who: Auditor, rooms: House) -> Response:
    """Give the receipt of a result: `radseal verify` and independent tools read it offline."""
    text = rooms.receipt(sop, who)
    headers = {"Content-Disposition": f'attachment; filename="{sop}.tlog-proof"'}
    return Response(text, media_type="text/plain; charset=utf-8", headers=headers)
