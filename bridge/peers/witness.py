"""Witnesses that we ask, over HTTP: one question, one bounded answer, never longer than agreed.

A witness is a stranger: it may be down, slow by design, endless or false. The whole exchange has
one time limit, so an answer that comes byte by byte ends too; bodies are cut off; no redirect is
followed. Outcomes are values, as with every peer. What an answer means,
`bridge.witnessing.witnesses` says.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["LIMIT", "SECONDS", "Answer", "NoAnswer", "ask"]

SECONDS = 10.0
LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; nothing of it is believed yet."""

    status: int
    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why nothing usable came back: unreachable, time-out, tls, too-large or not-http."""

    code: str


def ask(
    method: str, url: str, body: bytes | None = None, seconds: float = SECONDS
) -> Answer | NoAnswer:
    """Send a request and take the answer, both within `seconds`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    late = threading.Event()
    clock = None
    try:
        connection.connect()  # bounded by the connection's own limit
        # The socket itself: the connection forgets it once the other side says "close".
        clock = threading.Timer(seconds, _cut, (connection.sock, late))
        clock.daemon = True
        clock.start()
        answer = _exchange(connection, method, parts.path or "/", body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer = NoAnswer(_code(error))
    finally:
        if clock is not None:
            clock.cancel()
        connection.close()
    return NoAnswer("time-out") if late.is_set() else answer


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
) -> Answer | NoAnswer:
    headers = {"User-Agent": "radseal", "Connection": "close", "Accept": "text/plain"}
    if body is not None:
        headers["Content-Type"] = "text/plain; charset=utf-8"
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read(LIMIT + 1)
    if len(data) > LIMIT:
        return NoAnswer("too-large")
    return Answer(response.status, response.headers.get("Content-Type", ""), data)


def _cut(wire: socket.socket, late: threading.Event) -> None:
    """End an exchange from another thread: its next read finds the end of the stream."""
    late.set()
    with suppress(OSError):
        socket.socket.shutdown(wire, socket.SHUT_RDWR)  # of TLS too, without its farewell


def _code(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "time-out"
        case ssl.SSLError():
            return "tls"
        case OSError():
            return "unreachable"
        case _:
            return "not-http"
