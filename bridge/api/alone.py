"""A witness without a site: its two routes and /health/live, behind the same doors."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

import uvicorn
from fastapi import APIRouter, Depends, FastAPI

from bridge.access import Access, Doors, Permission
from bridge.api import problems, witness
from bridge.api.doors import Requires
from bridge.api.rooms import SiteFacts
from bridge.api.wire import AccessLine, AccessLog, BodyLimit, Headers
from bridge.errors import WrongUse
from bridge.web.pages import Pages

_AT_ONCE = 200
_health = APIRouter(prefix="/health", dependencies=[Depends(Requires(Permission.HEALTH))])


class _Nobody:
    """A house with one door: no tokens, no sessions, no rooms behind it."""

    def __init__(self, version: str) -> None:
        self.site = SiteFacts("radseal witness", "", version)
        self.access = Access(cast(Doors, _NoRows()), lambda _: b"")

    def now(self) -> None:
        """Nothing here expires."""


class _NoRows:
    def token(self, digest: str) -> None:
        """Know no token."""

    def session(self, digest: str) -> None:
        """Know no session."""


@_health.get("/live")
def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


def create(
    cosigner: witness.Witness,
    version: str,
    now: Callable[[], datetime],
    log: Callable[[AccessLine], None],
) -> FastAPI:
    """Make the application of a stand-alone witness."""
    app = FastAPI(title="radseal witness", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.rooms = _Nobody(version)
    app.state.pages = Pages("radseal witness", version)
    problems.install(app)
    app.include_router(_health)
    witness.serve(app, cosigner, now)
    app.add_middleware(cast(Any, BodyLimit))
    app.add_middleware(cast(Any, Headers), secure=False)
    app.add_middleware(cast(Any, AccessLog), write=log)
    return app


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; raises WrongUse when the port cannot be opened."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise WrongUse(f"{host}:{port} cannot be opened ({error.strerror}); say --port") from None
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, limit_concurrency=_AT_ONCE
    )
    uvicorn.Server(config).run(sockets=[bound])
