"""Where a verifier reads a log from: a folder, or a web address. Both are hostile.

Files have a largest size, a folder's must be plain files, and a server must send each within a
minute, from http or https, and may lead nowhere else. A tile that a newer, longer one replaced
is read as the beginning of that one: a log may grow while it is read.
"""

from __future__ import annotations

import errno
import http.client
import os
import stat
import threading
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import IO, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ledger import tiles
from ledger.errors import MalformedTile, VerifyError
from ledger.tiles import ENTRIES, WIDTH, Tile

__all__ = ["CHECKPOINT_SIZE", "PROOF_SIZE", "Folder", "Source", "Web", "read_tile", "source_of"]

CHECKPOINT_SIZE = 1_000_000
PROOF_SIZE = 2_000_000
"""Largest text of a checkpoint, and of a proof with its leaf and checkpoint, in bytes."""
_TILE_SIZE = WIDTH * 32
_BUNDLE_SIZE = WIDTH * (tiles.MAX_ENTRY + 2)
_PUBLISHED = ("checkpoint", "checkpoint.witnessed", "tile")
_SECONDS, _SOCKET_SECONDS, _CHUNK = 60.0, 20.0, 1 << 16


class Source(Protocol):
    """A log's files, by their paths below its prefix."""

    def read(self, path: str, limit: int) -> bytes:
        """Return a file; raises FileNotFoundError, or VerifyError where it cannot be read."""

    def tiles(self) -> Iterator[str]:
        """Give every path under tile/, where that can be known."""

    def others(self) -> list[str]:
        """Give what lies beside the published files and is not the sequencer's own."""


class Folder:
    """A log's folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, limit: int) -> bytes:
        """Return a plain file; never waits for a pipe."""
        try:
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        except OSError as error:
            raise VerifyError(path, f"cannot be read: {error.strerror}") from None
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise VerifyError(path, "is no plain file")
            if facts.st_size > limit:
                raise VerifyError(path, f"has {facts.st_size} bytes; at most {limit} can be true")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(limit)
        except OSError as error:
            raise VerifyError(path, f"cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def tiles(self) -> Iterator[str]:
        """Give every path under tile/; raises VerifyError for a link that could hide some."""
        for top, folders, names in os.walk(self._folder / "tile"):
            folders.sort()
            for name in sorted(names):
                yield (Path(top) / name).relative_to(self._folder).as_posix()
            for name in folders:
                if (Path(top) / name).is_symlink():
                    path = (Path(top) / name).relative_to(self._folder).as_posix()
                    raise VerifyError(path, "is a link; a log has plain folders")

    def others(self) -> list[str]:
        """Give the names beside the published ones that no sequencer made."""
        names = sorted(os.listdir(self._folder)) if self._folder.is_dir() else []
        return [name for name in names if name not in _PUBLISHED and not name.startswith(".")]


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 4

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == (
            "https",
            "http",
        ):
            raise URLError(f"the server leads to {after.scheme or 'nowhere'}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class Web:
    """A log's files behind an http or https prefix; raises VerifyError for another address."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise VerifyError(url[:200], "is no address of a log: write http://… or https://…")
        self._prefix = url.rstrip("/")
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(), urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(), _Redirects(),
        ):  # fmt: skip
            self._opener.add_handler(handler)

    def read(self, path: str, limit: int) -> bytes:
        """Return what the server sends, within a minute."""
        # In a thread of its own: headers that never end, or end and begin again, are read inside
        # of http.client, where no clock of ours is looked at. One that hangs ends with us.
        told: list[bytes | Exception] = []
        asking = threading.Thread(target=self._ask, args=(path, limit, told), daemon=True)
        asking.start()
        asking.join(_SECONDS)
        match told[:1]:
            case [bytes() as data]:
                return data
            case [Exception() as error]:
                raise error
            case _:
                raise VerifyError(path, f"did not arrive within {_SECONDS:.0f} seconds")

    def _ask(self, path: str, limit: int, told: list[bytes | Exception]) -> None:
        try:
            told.append(self._fetch(path, limit))
        except (FileNotFoundError, VerifyError) as error:
            told.append(error)

    def _fetch(self, path: str, limit: int) -> bytes:
        request = urllib.request.Request(  # noqa: S310  the scheme was looked at
            f"{self._prefix}/{path}", headers={"Accept-Encoding": "identity"}
        )
        data = b""
        try:
            with self._opener.open(request, timeout=_SOCKET_SECONDS) as answer:
                while chunk := answer.read1(_CHUNK):
                    data += chunk
                    if len(data) > limit:
                        raise VerifyError(path, f"is longer than the {limit} bytes it can have")
                told = answer.headers.get("Content-Length")
        except HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(path) from None
            raise VerifyError(path, f"the server answers {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise VerifyError(path, f"cannot be fetched: {type(error).__name__}") from None
        if told is not None and told.strip() != str(len(data)):
            raise VerifyError(path, "arrived cut short")
        return data

    def tiles(self) -> Iterator[str]:
        """Nothing: a server does not say what else it has."""
        return iter(())

    def others(self) -> list[str]:
        """Nothing, likewise."""
        return []


def source_of(where: Path | str) -> Source:
    """Give the source behind a folder's path or a web address."""
    text = str(where)
    return Web(text) if text.startswith(("http://", "https://")) else Folder(Path(where))


def read_tile(source: Source, tile: Tile) -> tuple[str, bytes]:
    """Return a tile and the path it was read at; raises VerifyError where it is missing."""
    limit = _BUNDLE_SIZE if tile.level == ENTRIES else _TILE_SIZE
    try:
        return tile.path(), source.read(tile.path(), limit)
    except FileNotFoundError:
        pass
    try:
        path = tile.whole().path()
        whole = source.read(path, limit)
    except FileNotFoundError:
        raise VerifyError(tile.path(), "is missing") from None
    if tile.level != ENTRIES:
        return path, whole[: tile.width * 32]
    try:
        return path, tiles.pack(tiles.unpack(whole, WIDTH)[: tile.width])
    except MalformedTile as error:
        raise VerifyError(path, str(error)) from None
