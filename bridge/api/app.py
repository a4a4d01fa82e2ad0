"""The HTTP application: routers, one per audience, over the house's rooms."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from bridge.api import (
    auditor,
    clinic,
    docs,
    health,
    ledger,
    metrics,
    operator,
    problems,
    search,
    session,
    vendor,
    witness,
)
from bridge.api.rooms import Rooms
from bridge.api.wire import AccessLine, AccessLog, BodyLimit, Headers, log_line
from bridge.web.pages import Pages


def create_app(
    rooms: Rooms,
    log: Callable[[AccessLine], None] = log_line,
    cosigner: witness.Witness | None = None,
) -> FastAPI:
    """Make the application. `log` gets one line per request (route template, no query string).

    With a `cosigner` the house is a witness for others' logs too.

    Start it with uvicorn's own access log off: that one would write addresses.
    """
    site = rooms.site
    app = FastAPI(
        title="radseal", version=site.version, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.rooms = rooms
    app.state.pages = Pages(site.name, site.version)
    problems.install(app)
    for audience in (
        health,
        session,
        search,
        operator,
        clinic,
        auditor,
        vendor,
        ledger,
        metrics,
        docs,
    ):
        app.include_router(audience.router)
    if cosigner is not None:
        witness.serve(app, cosigner, rooms.now)
    app.add_middleware(BodyLimit, streams=frozenset({vendor.PATH}))
    app.add_middleware(Headers, secure=site.secure)
    app.add_middleware(AccessLog, write=log)
    return app
