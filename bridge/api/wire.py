"""What happens to each request on the wire: access log, security headers, a bound on bodies.

Plain ASGI, outermost first: AccessLog, Headers, BodyLimit.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bridge.access import Principal, Role

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, forms would send Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=()",
}
BODY_LIMIT = 64 * 1024
_log = logging.getLogger("radseal.access")


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One request as the access log shows it: the route's template, never the address itself."""

    method: str
    route: str
    status: int
    ms: float
    role: str
    who: str


def log_line(line: AccessLine) -> None:
    """Write an access line as JSON to the logger radseal.access."""
    _log.info("%s", json.dumps({"event": "http", **asdict(line)}))


class AccessLog:
    """Gives one AccessLine per request to `write`. A patient's name is left out."""

    def __init__(self, app: ASGIApp, write: Callable[[AccessLine], None]) -> None:
        self._app = app
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and write the line when it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._write(_line(scope, status, time.perf_counter() - began))


class Headers:
    """Adds the security headers; answers are not stored unless a route says otherwise."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app = app
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and complete the answer's headers."""

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
                if self._secure:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        await self._app(scope, receive, complete if scope["type"] == "http" else send)


class BodyLimit:
    """Refuses bodies above `limit` bytes with 413, whether or not they announce their length.

    The routes at `streams` read and bound their bodies themselves, after they asked who calls.
    """

    def __init__(
        self, app: ASGIApp, limit: int = BODY_LIMIT, streams: frozenset[str] = frozenset()
    ) -> None:
        self._app = app
        self._limit = limit
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then pass the request on."""
        bodiless = scope["type"] != "http" or scope["method"] in ("GET", "HEAD")
        if bodiless or scope["path"] in self._streams:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                await _too_large(send, self._limit)
                return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)


async def _too_large(send: Send, limit: int) -> None:
    body = json.dumps(
        {
            "type": "urn:radseal:problem:content-too-large",
            "title": "Content Too Large",
            "status": 413,
            "detail": f"This address takes at most {limit} bytes.",
        }
    ).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _line(scope: Scope, status: int, seconds: float) -> AccessLine:
    route = getattr(scope.get("route"), "path", "(no route)")
    who = scope.get("state", {}).get("principal")
    role, name = "anonymous", ""
    if isinstance(who, Principal) and who.role is not None:
        role, name = str(who.role), "" if who.role is Role.PATIENT else who.name
    return AccessLine(scope["method"], route, status, round(seconds * 1000, 1), role, name)
