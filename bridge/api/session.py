"""For everybody at the door: sign in by a one-time link or a token, sign out; static files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from bridge.access import SESSION_LIFE, AccessError, Permission, Principal
from bridge.api.doors import (
    House,
    Paper,
    Requires,
    RequiresForm,
    cookie_name,
    principal_of,
    refuse_foreign,
)
from bridge.errors import NotFound

router = APIRouter()
_door = [Depends(Requires(Permission.SIGN_IN))]
Leaver = Annotated[Principal, Depends(RequiresForm(Permission.SIGN_OUT))]


@router.get("/", name="home", dependencies=_door)
def home(request: Request, pages: Paper) -> Response:
    """Lead to the studies, or to the door."""
    who = principal_of(request)
    if who.may(Permission.STUDIES_READ):
        return RedirectResponse("/studies", 303)
    if who.role is None:
        return RedirectResponse("/login", 303)
    return pages.answer(request, "home.html", {})


@router.get("/login", name="login", dependencies=_door)
def login(request: Request, pages: Paper) -> Response:
    """Show how to sign in."""
    return pages.answer(request, "login.html", {"secret": "", "fault": ""})


@router.get("/login/{secret}", name="login_link", dependencies=_door)
def login_link(request: Request, secret: str, pages: Paper) -> Response:
    """Show the button of a one-time link; looking at it does not use it up."""
    return pages.answer(request, "login.html", {"secret": secret[:64], "fault": ""})


@router.post("/login", name="sign_in", dependencies=_door)
def sign_in(
    request: Request,
    rooms: House,
    pages: Paper,
    secret: Annotated[str, Form(max_length=200)],
) -> Response:
    """Exchange a one-time secret (or a token) for a session cookie; 401 if it does not hold."""
    refuse_foreign(request)
    secure = rooms.site.secure
    try:
        opened = rooms.access.sign_in(secret.strip(), rooms.now())
    except AccessError as error:
        return pages.answer(request, "login.html", {"secret": "", "fault": str(error)}, status=401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        cookie_name(secure=secure),
        opened.secret,
        max_age=int(SESSION_LIFE.total_seconds()),
        path="/",
        httponly=True,
        secure=secure,
        samesite="strict",
    )
    return answer


@router.post("/logout", name="sign_out")
def sign_out(request: Request, who: Leaver, rooms: House) -> Response:  # noqa: ARG001
    """Close the session."""
    name = cookie_name(secure=rooms.site.secure)
    rooms.access.end(request.cookies.get(name, ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(name, path="/", httponly=True, secure=rooms.site.secure, samesite="strict")
    return answer


@router.get("/static/{name}", name="static", dependencies=_door)
def static(name: str, pages: Paper) -> Response:
    """Give a static file; its address carries its digest, so it may be kept."""
    media_type = pages.media_type(name)
    if media_type is None:
        raise NotFound
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(pages.static[name], headers={**kept, "Content-Type": media_type})
