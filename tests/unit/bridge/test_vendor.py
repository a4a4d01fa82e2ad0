"""A vendor's door: a package comes in over HTTP, and its vendor sees what became of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import uvicorn

from bridge import ambient
from bridge.access import Role
from bridge.api import vendor
from bridge.api.app import create_app
from bridge.api.wire import AccessLine
from bridge.catalog import upload
from bridge.errors import Refused, StorageFull
from bridge.front import Front
from models import sandbox


class Door:
    """The desk's HTTP side on a port of its own."""

    def __init__(self, desk) -> None:
        self.front = Front(desk.rooms, dict)
        self.lines: list[AccessLine] = []
        bound = socket.create_server(("127.0.0.1", 0))
        self.port = int(bound.getsockname()[1])
        app = create_app(self.front, log=self.lines.append)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._server.run, args=([bound],), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def token(self, name: str, role: Role = Role.VENDOR) -> str:
        return self.front.access.issue_token(name, role, ambient.now())

    def ask(self, method: str, path: str, token: str, body=None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        said = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, body, {**said, **headers})
        response = connection.getresponse()
        data = json.loads(response.read())
        connection.close()
        return response.status, data


@pytest.fixture
def door(desk) -> Iterator[Door]:
    made = Door(desk)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _quick():
    """The two looks in a child process are test_catalog's."""
    passed = sandbox.SelfTest(True, "")
    with (
        mock.patch.object(sandbox, "admit", return_value=[]),
        mock.patch.object(sandbox, "selftest", return_value=passed),
    ):
        yield


@pytest.fixture
def package(desk) -> Path:
    """A signed package whose vendor, "test", is trusted."""
    root = desk.package()
    desk.rooms.registrar.trust(desk.vendor.public, "test", ambient.now())
    return root


def as_zip(root: Path) -> bytes:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in (*root.rglob("*"), Path(f"{root}.sig")):
            archive.write(path, path.relative_to(root.parent))
    return target.read_bytes()


def send(door: Door, token: str, body, **headers: str):
    return door.ask(
        "POST", "/models", token, body, **{"Content-Type": "application/zip"}, **headers
    )


def left_behind(desk) -> list[str]:
    return [path.name for path in (desk.settings.folder / "models").glob(".*")]


def test_a_vendor_pushes_from_afar_and_reads_what_became_of_it(door, desk, package, radseal):
    file = package.parent / "token"
    file.write_text(door.token("test") + "\n")
    to = ("--to", f"http://127.0.0.1:{door.port}/", "--token", file)
    said = radseal("model", "push", package, *to).out
    assert said.startswith("registered: test.threshold@1.2.3, model ")
    assert radseal("model", "push", package, *to).out.startswith(
        "registered before, now registered"
    )
    _, told = door.ask("GET", "/models.json", file.read_text().strip())
    (line,) = told["models"]
    assert (line["id"], line["state"]) == ("test.threshold", "registered")
    assert door.ask("GET", f"/models/{line['digest']}", file.read_text().strip())[0] == 200
    (leaf,) = [leaf for leaf in desk.leaves() if leaf["type"] == "model.registered"
               and leaf["body"]["id"] == "test.threshold"]  # fmt: skip
    assert leaf["body"]["by"] == "test"
    assert leaf["body"]["authn"] == "token"
    assert left_behind(desk) == []
    assert not [line for line in door.lines if "test.threshold" in line.route]


def test_who_brought_a_model_cannot_approve_it(door, desk, package):
    assert send(door, door.token("test"), as_zip(package))[0] == 201
    with pytest.raises(Refused, match="second one"):
        desk.rooms.lifecycle.act("test.threshold", "approve", ambient.now(), by="TEST")


def test_a_vendor_sees_and_brings_only_its_own(door, package):
    assert send(door, door.token("test"), as_zip(package))[0] == 201
    other = door.token("other")
    assert door.ask("GET", "/models", other) == (200, {"models": []})
    (line,) = door.ask("GET", "/models", door.token("boss", Role.APPROVER))[1]["models"]
    assert door.ask("GET", f"/models/{line['digest']}", other)[0] == 404
    status, told = send(door, other, as_zip(package))
    assert status == 403
    assert "another vendor" in told["detail"]


@pytest.mark.parametrize(
    ("role", "read", "bring"),
    [
        (Role.OPERATOR, 200, 403), (Role.AUDITOR, 200, 403), (Role.APPROVER, 200, 403),
        (Role.RADIOLOGIST, 403, 403), (Role.PATIENT, 403, 403), (Role.ADMINISTRATOR, 200, 201),
    ],
)  # fmt: skip
def test_what_others_may(door, package, role, read, bring):
    token = door.token("somebody", role)
    assert door.ask("GET", "/models", token)[0] == read
    assert send(door, token, as_zip(package))[0] == bring


def test_nobody_is_asked_for_a_body(door):
    """The answer comes before the body is read: it was never sent."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire:
        wire.sendall(b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\n"
                     b"Content-Length: 1000000000\r\n\r\n")  # fmt: skip
        assert wire.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_a_session_cannot_push(door):
    opened = door.front.access.sign_in(door.token("boss", Role.ADMINISTRATOR), ambient.now())
    cookie = f"radseal_session={opened.secret}"
    assert send(door, "", b"", Cookie=cookie)[0] == 403


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "whole zip"), (b"PK" + bytes(1000), "whole zip")],
)
def test_what_is_no_package_is_said_in_words(door, desk, body, words):
    status, told = send(door, door.token("test"), body)
    assert (status, told["type"]) == (409, "urn:radseal:problem:conflict")
    assert words in told["detail"]
    assert left_behind(desk) == []


def test_a_changed_byte_is_refused_and_nothing_is_left(door, desk, package):
    (package / "docs").mkdir(exist_ok=True)
    (package / "docs/README.md").write_text("changed after it was signed")
    status, told = send(door, door.token("test"), as_zip(package))
    assert status == 409
    assert "README.md" in told["detail"]
    assert door.ask("GET", "/models", door.token("test"))[1] == {"models": []}
    assert left_behind(desk) == []


def test_more_than_the_site_takes(new_site):
    desk = new_site("[models]\nmax_package_mb = 1\n")
    door = Door(desk)
    status, told = send(door, door.token("test"), bytes(3 << 20))
    door.close()
    assert status == 413
    assert "max_package_mb" in told["detail"]
    assert left_behind(desk) == []


def test_other_media_types_are_asked_for_as_zip(door):
    status, told = door.ask("POST", "/models", door.token("test"), b"{}")
    assert status == 400
    assert "application/zip" in told["detail"]


def test_a_sender_who_goes_away_leaves_nothing(door, desk):
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire:
        wire.sendall(b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\n"
                     b"Authorization: Bearer " + door.token("test").encode() + b"\r\n"
                     b"Content-Length: 100000\r\n\r\n" + bytes(70_000))  # fmt: skip
    ends = time.monotonic() + 10
    while not door.lines and time.monotonic() < ends:
        time.sleep(0.02)
    assert door.lines
    assert left_behind(desk) == []
    assert send(door, door.token("test"), b"")[0] == 409  # the door is free again


def test_who_drips_does_not_hold_the_door(door, desk, package):
    token = door.token("test")
    with (
        mock.patch.object(vendor, "_SILENT_SECONDS", 0.2),
        socket.create_connection(("127.0.0.1", door.port), timeout=10) as wire,
    ):
        wire.sendall(b"POST /models HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\n"
                     b"Authorization: Bearer " + token.encode() + b"\r\n"
                     b"Content-Length: 100000\r\n\r\n")  # fmt: skip
        for _ in range(10):  # never silent for long, and slower than anybody is
            with contextlib.suppress(OSError):
                wire.sendall(b"x")
            time.sleep(0.05)
        assert b"too slowly" in wire.recv(1 << 16)
    assert left_behind(desk) == []
    assert send(door, token, as_zip(package))[0] == 201


def test_one_at_a_time_and_a_full_disk(door, desk, package):
    token = door.token("test")
    with door.front._bringing:
        status, told = send(door, token, as_zip(package))
        assert (status, told["status"]) == (503, 503)
        assert "try again" in told["detail"]
    with mock.patch.object(type(desk.rooms.files), "is_full", return_value=True):
        assert send(door, token, as_zip(package))[0] == 503
    assert send(door, token, as_zip(package))[0] == 201


def test_a_disk_that_fills_meanwhile(desk):
    def chunks():
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFull), upload.unpacked(chunks(), desk.base / "here", 1000):
        pass
    assert list((desk.base / "here").iterdir()) == []


def test_what_a_dead_process_was_receiving_goes(desk):
    folder = desk.base / "models"
    (folder / ".incoming-x/package").mkdir(parents=True)
    (folder / "kept").mkdir()
    upload.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("to", "words", "code"),
    [
        ("http://hospital.example.org", "reads the token", 2),
        ("ftp://hospital.example.org", "no address", 2),
        ("https://", "no address", 2),
        ("https://[::1", "no address", 2),
        ("https://user@h/", "no address", 2),
        ("https://a..b", "no address", 2),
        (f"https://{'a' * 70}.org", "no address", 2),
        ("https://h\x00x", "no address", 2),
        ("https://h/a b", "no address", 2),
        ("https://h/\N{EURO SIGN}", "no address", 2),
        ("http://127.0.0.1:1", "does not answer", 1),
    ],
)
def test_addresses_that_are_none(package, radseal, to, words, code):
    file = package.parent / "token"
    file.write_text("rs_x")
    said = radseal("model", "push", package, "--to", to, "--token", file, code=code)
    assert words in said.err


@pytest.mark.parametrize("token", [b"", b"rs_a\nrs_b", b"rs_\xe2\x82\xac", b"rs_" + b"a" * 300])
def test_a_file_that_holds_no_token_is_not_repeated(package, radseal, token):
    file = package.parent / "token"
    file.write_bytes(token)
    to = ("--to", "http://127.0.0.1:1", "--token", file)
    said = radseal("model", "push", package, *to, code=2)
    assert "holds no token" in said.err
    assert "rs_a" not in said.out + said.err


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_a_token_is_for_whom_a_leaf_can_name(radseal, name):
    assert "printable" in radseal("token", "add", name, "--role", "vendor", code=2).err


def test_what_the_site_refuses_its_words_say(door, package, radseal):
    file = package.parent / "token"
    file.write_text("rs_unknown")
    to = ("--to", f"http://127.0.0.1:{door.port}", "--token", file)
    assert "is not known here" in radseal("model", "push", package, *to, code=1).err
    assert "go together" in radseal("model", "push", package, *to[:2], code=2).err
