"""One line between a parent and its cell: JSON words, one a line, and files that go with them.

A socket pair: it tells each side when the other is gone, and it can hand over an open
file (SCM_RIGHTS), so that no name in any folder leads to a patient's pixels. Words are
short; whoever sends more than `most` bytes without an end is not listened to.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["MOST", "Garbled", "Gone", "Line", "pair"]

MOST: Final = 1024 * 1024
_WITH_FILE: Final = "+file"


class Gone(Exception):
    """The other side ended."""


class Garbled(Exception):
    """What the other side says is not one JSON object a line, or is far too long."""


class Line:
    """One end. Not for several threads at once."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._heard = b""
        self._files: list[int] = []

    def tell(
        self, words: Mapping[str, Any], file: int | None = None, seconds: float | None = None
    ) -> None:
        """Say words, and hand over an open file with them. Raises Gone, or TimeoutError.

        No time left is a TimeoutError, too: a socket would take 0 for "do not wait".
        """
        if seconds is not None and seconds <= 0:
            raise TimeoutError
        said = words if file is None else {**words, _WITH_FILE: True}
        data = json.dumps(said).encode() + b"\n"
        self._end.settimeout(seconds)
        try:
            if file is not None:
                socket.send_fds(self._end, [data[:1]], [file])
                data = data[1:]
            self._end.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone from error

    def hear(
        self, seconds: float | None = None, *, most: int = MOST
    ) -> tuple[dict[str, Any], int | None]:
        """Wait for words; returns them and the file that came along, which is now the caller's.

        Raises TimeoutError after so many seconds in all, Gone, or Garbled.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._heard:
            if len(self._heard) > most or len(self._files) > 1:
                raise Garbled
            self._wait(until)
        said, _, self._heard = self._heard.partition(b"\n")
        try:
            words = json.loads(said)
        except (ValueError, RecursionError):
            words = None
        if not isinstance(words, dict):
            raise Garbled
        # Words before these may have been read together with the file of these.
        brings = words.pop(_WITH_FILE, False) is True and self._files
        return words, self._files.pop(0) if brings else None

    def _wait(self, until: float | None) -> None:
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._end.settimeout(left)
        try:
            data, files, _, _ = socket.recv_fds(self._end, 65536, 2)
        except ConnectionResetError as error:
            raise Gone from error
        self._files += files
        for file in files:
            os.set_inheritable(file, False)
        if not data:
            raise Gone
        self._heard += data

    def quiet(self) -> bool:
        """Whether the other side has said nothing that was not heard yet. Raises Gone."""
        if self._heard or self._files:
            return False
        self._end.settimeout(0)
        try:
            if self._end.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            return True
        except ConnectionResetError as error:
            raise Gone from error
        raise Gone

    def no_more(self) -> None:
        """Say that nothing will follow; the other side hears its end."""
        try:
            self._end.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone: whoever waits for its answer finds out
            return

    def close(self) -> None:
        """Close this end, and any file that nobody took."""
        for file in self._files:
            os.close(file)
        self._files = []
        self._end.close()


def pair() -> tuple[Line, socket.socket]:
    """Make a line; the second end is for a child's standard input."""
    ours, theirs = socket.socketpair()
    return Line(ours), theirs
