"""For the operator: what can be done to a study."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from bridge.access import Permission, Principal
from bridge.api import asks
from bridge.api.doors import House, RequiresForm
from bridge.api.rooms import Act

router = APIRouter(prefix="/studies")
Operator = Annotated[Principal, Depends(RequiresForm(Permission.STUDIES_OPERATE))]


@router.post("/{uid}/{act}", name="act")
def do(request: Request, uid: asks.UidPath, act: Act, who: Operator, rooms: House) -> Response:
    """Complete, retry or cancel a study, then show its page (or say it as JSON)."""
    words = rooms.act(act, uid, who)
    if asks.wants_page(request):
        return RedirectResponse(f"/studies/{uid}?said={act}", 303)
    return JSONResponse({"act": act, "study_instance_uid": uid, "words": words})
