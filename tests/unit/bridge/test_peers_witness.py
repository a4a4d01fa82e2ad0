"""One question to a witness that may be down, endless, slow or no witness at all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
import servers

from bridge.peers import witness
from bridge.peers.witness import Answer, NoAnswer


@contextlib.contextmanager
def stranger(speak):
    """A server on loopback that reads a request's head and then does what `speak` says."""
    listener = socket.create_server((servers.HOST, 0))
    ended = threading.Event()

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(20)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                speak(connection, head, ended)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://{servers.HOST}:{listener.getsockname()[1]}/witness/add-checkpoint"
    finally:
        ended.set()
        listener.close()


def says(data):
    return lambda connection, _head, _ended: connection.sendall(data)


def trickle(prefix, drop):
    def speak(connection, _head, ended):
        connection.sendall(prefix)
        while not ended.wait(0.05):
            connection.sendall(drop)

    return speak


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def test_an_answer_is_given_as_it_is():
    with stranger(says(OK + b"Content-Length: 3\r\n\r\nabc")) as url:
        assert witness.ask("POST", url, b"x") == Answer(200, "text/plain", b"abc")
    conflict = b"HTTP/1.1 409 Conflict\r\nContent-Type: text/x.tlog.size\r\n\r\n12\n"
    with stranger(says(conflict)) as url:
        assert witness.ask("POST", url, b"x") == Answer(409, "text/x.tlog.size", b"12\n")


def test_what_is_sent():
    heads = []

    def speak(connection, head, _ended):
        heads.append(head)
        connection.sendall(OK + b"Content-Length: 0\r\n\r\n")

    with stranger(speak) as url:
        witness.ask("POST", url, b"old 0\n\nx\n")
        witness.ask("GET", url)
    assert heads[0].startswith(b"POST /witness/add-checkpoint HTTP/1.1\r\n")
    assert b"Content-Length: 9\r\n" in heads[0]
    assert heads[1].startswith(b"GET /witness/add-checkpoint HTTP/1.1\r\n")


def test_a_redirect_is_not_followed():
    away = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with stranger(says(away)) as url:
        assert witness.ask("POST", url, b"x").status == 302


@pytest.mark.parametrize(
    "speak",
    [
        says(OK + b"Content-Length: 99999999\r\n\r\n" + b"x" * (witness.LIMIT + 1)),
        says(OK + b"\r\n" + b"x" * (witness.LIMIT + 1)),
        says(
            OK + b"Transfer-Encoding: chunked\r\n\r\n11000\r\n" + b"x" * 0x11000 + b"\r\n0\r\n\r\n"
        ),
    ],
)
def test_a_huge_body_is_cut_off(speak):
    with stranger(speak) as url:
        assert witness.ask("POST", url, b"x", seconds=10) == NoAnswer("too-large")


@pytest.mark.parametrize(
    "speak",
    [
        lambda _connection, _head, ended: ended.wait(20),  # silence
        trickle(b"", b"H"),  # a status line without an end
        trickle(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),  # headers without an end
        trickle(OK + b"Content-Length: 50000\r\n\r\n", b"x"),  # a body, byte by byte
        trickle(OK + b"\r\n", b"x"),
    ],
    ids=["silence", "status", "headers", "body", "endless"],
)
def test_the_whole_exchange_has_one_limit(speak):
    """A time limit for each read would never end these; the count of headers ends one earlier."""
    with stranger(speak) as url:
        began = time.monotonic()
        answer = witness.ask("POST", url, b"x", seconds=0.7)
        assert time.monotonic() - began < 15  # it ended, long before the stranger did
    assert answer == NoAnswer("time-out")


@pytest.mark.parametrize(
    "speak",
    [says(b"hello\r\n\r\n"), says(b""), says(b"HTTP/1.1 999999 x\r\n\r\n"),
     says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"),
     says(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")],
)  # fmt: skip
def test_what_is_no_http_is_no_answer(speak):
    with stranger(speak) as url:
        assert witness.ask("POST", url, b"x", seconds=5).code in ("not-http", "unreachable")


def test_nobody_there():
    url = f"http://{servers.HOST}:{servers.free_port()}/"
    assert witness.ask("POST", url, b"x", seconds=2) == NoAnswer("unreachable")


def test_plain_http_behind_https_is_no_answer():
    with stranger(says(OK + b"\r\n")) as url:
        secure = url.replace("http://", "https://")
        assert witness.ask("POST", secure, b"x", seconds=2).code in ("tls", "time-out")
