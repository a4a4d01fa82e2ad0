"""For whoever writes a program against us: the addresses, and OpenAPI. Nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from bridge.access import GRANTS, Permission
from bridge.api import asks
from bridge.api.doors import Paper, Requires

router = APIRouter(dependencies=[Depends(Requires(Permission.DOCS_READ))])


@router.get("/openapi.json", name="openapi")
def openapi(request: Request) -> JSONResponse:
    """Give the OpenAPI description."""
    app: FastAPI = request.app
    return JSONResponse(app.openapi())


@router.get("/docs", name="docs")
def docs(request: Request, pages: Paper) -> Response:
    """List addresses and roles for people; the JSON twin is /openapi.json."""
    app: FastAPI = request.app
    if asks.wants_json(request):
        return JSONResponse(app.openapi())
    return pages.answer(request, "docs.html", {"paths": app.openapi()["paths"], "roles": _roles()})


def _roles() -> dict[str, list[str]]:
    return {str(role): _sorted(grants) for role, grants in GRANTS.items()}


def _sorted(grants: Any) -> list[str]:
    return sorted(str(grant) for grant in grants if isinstance(grant, Permission))
