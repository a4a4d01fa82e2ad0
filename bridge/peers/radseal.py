"""Another hospital's radseal, where a vendor delivers a package. Its answers are not believed."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Final
from urllib.parse import urlsplit

from bridge.errors import NotFound, Refused, TryAgain, WrongUse

__all__ = ["Registered", "push"]

_SECONDS: Final = 900.0
"""How long the other side may think: it runs the model's self-test before it answers."""
_LIMIT: Final = 1 << 16
_TOKEN: Final = re.compile(r"[!-~]{1,200}")
_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Registered:
    """What the site says it registered; `new` is False where it was there before."""

    id: str
    version: str
    digest: str
    state: str
    new: bool


def push(
    url: str, token: str, package: IO[bytes], size: int, progress: Callable[[int], None]
) -> Registered:
    """Send a package's zip of `size` bytes to a site; `progress` is told of bytes sent.

    Raises WrongUse for what is no token, which is not repeated, and for an address that is none
    or would show the token to everybody, NotFound where nobody
    answers, Refused with the site's words, TryAgain where it is busy or full.
    """
    if _TOKEN.fullmatch(token) is None:
        raise WrongUse("--token: the file holds no token; it is one line that begins with rs_")
    connection, path = _connection(url)
    headers = {
        "Authorization": f"Bearer {token}", "Content-Type": "application/zip",
        "Content-Length": str(size), "Accept": "application/json", "User-Agent": "radseal",
    }  # fmt: skip
    try:
        connection.connect()
        # A site that refuses answers before it has read everything: its words say more than
        # the pipe that broke.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, _chunks(package, progress), headers)
        response = connection.getresponse()
        data = response.read(_LIMIT)
    except (OSError, http.client.HTTPException) as error:
        why = "nothing came in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise NotFound(f"{url} does not answer ({why}); check the address and try again") from None
    finally:
        connection.close()
    return _read(response.status, data)


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as the socket will
        url.encode("ascii")
    except ValueError:  # UnicodeError, too
        raise WrongUse(f"{url} is no address; write https://HOST") from None
    plain = url.isprintable() and " " not in url
    if (
        not plain
        or not host
        or parts.scheme not in ("http", "https")
        or parts.username
        or parts.query
    ):
        raise WrongUse(f"{url} is no address of a site; write https://HOST")
    path = parts.path.rstrip("/") + "/models"
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=_SECONDS), path
    if not _is_here(host):
        raise WrongUse("over http everybody on the way reads the token; write https://…")
    return http.client.HTTPConnection(host, port, timeout=_SECONDS), path


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _chunks(package: IO[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    while chunk := package.read(_CHUNK):
        yield chunk
        progress(len(chunk))


def _read(status: int, data: bytes) -> Registered:
    said: Any = {}
    with suppress(ValueError, RecursionError):
        said = json.loads(data)
    said = said if isinstance(said, dict) else {}
    if status in (200, 201):
        told = [_plain(said.get(key), 200) for key in ("id", "version", "digest", "state")]
        return Registered(told[0], told[1], told[2], told[3], status == 201)
    words = _plain(said.get("detail"), 1000) or f"the site answers {status}"
    if status == 503:
        raise TryAgain(words)
    raise Refused(words)


def _plain(said: object, most: int) -> str:
    """Give a stranger's text so that a terminal shows it and does nothing else."""
    return "".join(c if c.isprintable() else " " for c in str(said or "")[:most])
