"""For the machine that watches us: alive, ready. Anonymous."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from bridge.access import Permission
from bridge.api.doors import House, Requires

router = APIRouter(prefix="/health", dependencies=[Depends(Requires(Permission.HEALTH))])


@router.get("/live")
def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@router.get("/ready")
def ready(rooms: House) -> JSONResponse:
    """Say 200 when work is taken, else 503 with the names of what is missing (no words)."""
    checks = rooms.ready()
    fine = all(check.ok for check in checks)
    body: dict[str, Any] = {
        "status": "ready" if fine else "not ready",
        "checks": {check.name: check.ok for check in checks},
    }
    if witnesses := rooms.log().witnesses:
        # Never a reason to be not ready: care does not wait for a witness.
        body["witnesses"] = "ok" if all(one.ok for one in witnesses) else "alarm"
    return JSONResponse(body, 200 if fine else 503)
