"""One permission per route: the dependency that asks for it, and whom it lets in."""

from __future__ import annotations

from typing import Annotated, cast
from urllib.parse import urlsplit

from fastapi import Depends, Form, Header, Request

from bridge.access import AccessError, Permission, Principal, anonymous, csrf_matches
from bridge.api.problems import NotFromHere, NotSignedIn
from bridge.api.rooms import Rooms
from bridge.errors import NotAllowed
from bridge.web.pages import Pages


def rooms_of(request: Request) -> Rooms:
    """Give the house behind this application."""
    return cast(Rooms, request.app.state.rooms)


def pages_of(request: Request) -> Pages:
    """Give the pages of this application."""
    return cast(Pages, request.app.state.pages)


def cookie_name(*, secure: bool) -> str:
    """Name the session cookie; over https the name itself forbids other hosts and paths."""
    return "__Host-radseal" if secure else "radseal_session"


def principal_of(request: Request) -> Principal:
    """Say who calls: a bearer token first, then the session cookie, else nobody."""
    known = getattr(request.state, "principal", None)
    if isinstance(known, Principal):
        return known
    rooms = rooms_of(request)
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    cookie = request.cookies.get(cookie_name(secure=rooms.site.secure))
    found: Principal | None = None
    if scheme.lower() == "bearer":
        try:
            found = rooms.access.by_token(secret.strip(), rooms.now())
        except AccessError as error:
            raise NotSignedIn(str(error)) from None
    elif cookie:
        found = rooms.access.by_session(cookie, rooms.now())
    principal = found or anonymous(rooms.site.public)
    request.state.principal = principal
    return principal


class Requires:
    """Let in whoever holds the permission: 401 for nobody in particular, 403 for others."""

    def __init__(self, permission: Permission) -> None:
        self.permission = permission

    def __call__(self, request: Request) -> Principal:
        """Return who it is; raises NotSignedIn or NotAllowed."""
        principal = principal_of(request)
        if principal.may(self.permission):
            return principal
        if principal.role is None:
            raise NotSignedIn
        raise NotAllowed(f"The role {principal.role} does not hold {self.permission}.")


class RequiresToken(Requires):
    """The same for programs only: no form of a browser can ask for it."""

    def __call__(self, request: Request) -> Principal:
        """Return who it is; raises NotAllowed for a session."""
        principal = super().__call__(request)
        if principal.via != "token":
            raise NotAllowed("Send a token as `Authorization: Bearer …`; a session cannot do this.")
        return principal


class RequiresForm(Requires):
    """The same for what changes something: a session must also show its CSRF token.

    It comes as the form field `csrf` or the header `X-CSRF-Token`; tokens need none.
    """

    def __call__(
        self,
        request: Request,
        csrf: Annotated[str | None, Form()] = None,
        x_csrf_token: Annotated[str | None, Header()] = None,
    ) -> Principal:
        """Return who it is; raises NotFromHere when the form came from elsewhere."""
        principal = super().__call__(request)
        refuse_foreign(request)
        if not csrf_matches(principal, csrf or x_csrf_token):
            raise NotFromHere
        return principal


def refuse_foreign(request: Request) -> None:
    """Refuse a form that a browser says was sent from another site's page (NotFromHere).

    Sec-Fetch-Site decides where a browser sends it (https, loopback); elsewhere Origin does.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign:
        raise NotFromHere


House = Annotated[Rooms, Depends(rooms_of)]
Paper = Annotated[Pages, Depends(pages_of)]
