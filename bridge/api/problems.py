"""The one shape of errors: a table from exception to status, as problem+json or as a page.

RFC 9457. Nothing that the caller sent is repeated, because it may be PHI.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from bridge.access import AccessError
from bridge.api import wire
from bridge.api.asks import wants_page
from bridge.errors import (
    NotAllowed,
    NotFound,
    RadsealError,
    Refused,
    SettingsError,
    StorageFull,
    TooLarge,
    TryAgain,
    WrongUse,
)
from bridge.web.pages import Pages


class NotSignedIn(RadsealError):
    """Sign in first, or send a token as `Authorization: Bearer …`."""


class NotFromHere(NotAllowed):
    """The form was not filled in on a page of ours; reload the page and try again."""


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotSignedIn, 401),
    (AccessError, 401),
    (NotAllowed, 403),
    (NotFound, 404),
    (TooLarge, 413),
    (Refused, 409),
    (WrongUse, 400),
    (StorageFull, 503),
    (TryAgain, 503),
    (SettingsError, 500),
    (RadsealError, 500),
)
"""The first line that fits decides."""


def problem(request: Request, status: int, detail: str) -> Response:
    """Answer with one problem: a page for a browser, problem+json for everybody else."""
    title = HTTPStatus(status).phrase
    headers = {"WWW-Authenticate": 'Bearer realm="radseal"'} if status == 401 else {}
    if request.headers.get("hx-request"):
        if status == 401:
            headers["HX-Redirect"] = "/login"
        return Response(detail, status, headers, "text/plain; charset=utf-8")
    if wants_page(request):
        pages = cast(Pages, request.app.state.pages)
        context = {"status": status, "title": title, "detail": detail, "path": request.url.path}
        return pages.answer(request, "problem.html", context, status=status, headers=headers)
    slug = title.lower().replace(" ", "-")
    body = {"type": f"urn:radseal:problem:{slug}", "title": title, "status": status}
    return JSONResponse(
        {**body, "detail": detail}, status, headers, media_type="application/problem+json"
    )


def install(app: FastAPI) -> None:
    """Teach the application the table."""
    for kind, status in STATUS:
        app.add_exception_handler(kind, _ours(status))
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unforeseen)


def _ours(status: int) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        return problem(request, status, str(error))

    return answer


def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {
        404: "There is nothing at this address.",
        405: "This address does not take that method.",
    }
    return problem(request, status, words.get(status, HTTPStatus(status).description))


def _invalid(request: Request, error: Exception) -> Response:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    places = sorted({".".join(str(part) for part in fault["loc"][:2]) for fault in faults})
    return problem(request, 422, "Not understood: " + ", ".join(places))


def _unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001
    # Starlette answers this outside all middleware: the headers have to be set here.
    answer = problem(request, 500, "Something broke; the log of the service says what.")
    answer.headers.update({**wire.HEADERS, "Cache-Control": "no-store"})
    return answer
