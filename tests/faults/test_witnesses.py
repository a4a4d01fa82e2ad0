"""Hospitals witness each other, over real HTTP: and one rolls back, splits, lies, or is away.

Whatever a witness does, a study is read, its checkpoint published and its result delivered.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import servers
import ward as w

from bridge.engine import EngineClient
from bridge.home import create, open_rooms
from bridge.witnessing import cosigning, standing
from ledger import leaf, note
from ledger.checkpoint import Checkpoint
from ledger.errors import MalformedNote
from ledger.policy import Policy, Verdict

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240)]
LAG = 0.02  # minutes


RADSEAL = [sys.executable, "-m", "bridge"]


def alone(*words: object, code: int | None = 0) -> str:
    """Run a command that names no site by itself; `code` is the status it must have."""
    done = subprocess.run(
        [*RADSEAL, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done.stdout


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def post(url: str, body: bytes) -> int:
    """The status of an answer."""
    try:
        with urllib.request.urlopen(url, body, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def site_at(place: Path, name: str) -> w.Ward:
    """A site without models, that is a witness too; not served yet."""
    place.mkdir(exist_ok=True)
    made = w.Ward(place / "site", servers.free_port(), servers.free_port(), place / "log")
    create(made.folder, name, f"ledger.{name}.example/log")
    text = f'name = "{name}"\norigin = "ledger.{name}.example/log"\n[listener]\n'
    text += f'host = "{servers.HOST}"\nport = {made.port}\n[http]\nport = {made.http_port}\n'
    (made.folder / "site.toml").write_text(text, encoding="utf-8")
    made.log.touch()
    return made


def as_witness(one: w.Ward, name: str) -> str:
    """Make the site a witness; the line for its partners."""
    made = alone(
        "witness", "init", one.folder / "witness", "--name", f"w.{name}.example", "--as", name,
        "--url", f"http://{servers.HOST}:{one.http_port}/witness", "--json",
    )  # fmt: skip
    with (one.folder / "site.toml").open("a", encoding="utf-8") as file:
        file.write('[witness]\nfolder = "witness"\n')
    return str(json.loads(made)["lines"][0])


def asks(one: w.Ward, *lines: str) -> None:
    """Let the site ask these witnesses."""
    with (one.folder / "site.toml").open("a", encoding="utf-8") as file:
        file.write(f"[ledger]\nwitness_lag_minutes = {LAG}\nwitnesses = {json.dumps(lines)}\n")


def trusts(one: w.Ward, other: w.Ward) -> None:
    cosigning.trust(
        one.folder / "witness", (other.folder / "ledger.vkey").read_text(encoding="utf-8").split()
    )


def grow(one: w.Ward, count: int = 1, digit: str = "0") -> None:
    """Append leaves as a command beside the service does; wait for it to publish them."""
    before = size(one)
    with EngineClient(one.settings.database_url) as counter:
        rooms = open_rooms(one.settings, counter)
        for number in range(count):
            name = f"test/{time.monotonic_ns()}/{number}"
            said = {"recipient": f"test {digit}", "purpose": "TREATDS", "what": {}, "basis": "law"}
            rooms.record.say("access.disclosed", name, said)
        rooms.record.log.store.close()
        rooms.database.dispose()
    if one.alive():
        until(lambda: size(one) >= before + count, one, "a checkpoint")


def said(one: w.Ward) -> list[str]:
    """The states in the site's leaves, in their order."""
    with EngineClient(one.settings.database_url) as counter:
        rooms = open_rooms(one.settings, counter)
        log = rooms.record.log
        found = [rooms.record.body(leaf.ref(one)) for one, _ in log.select(type="witness.status")]
        log.store.close()
        rooms.database.dispose()
    return [str(body["state"]) for body in found]


def size(one: w.Ward, name: str = "checkpoint") -> int:
    try:
        text = (one.folder / "ledger" / name).read_text(encoding="utf-8")
        return Checkpoint.parse(note.parse(text)[0]).size
    except (FileNotFoundError, MalformedNote):
        return 0


def verdict(one: w.Ward) -> Verdict:
    """What the site's own policy says of what it shows to anybody over HTTP."""
    address = f"http://{servers.HOST}:{one.http_port}/ledger/checkpoint.witnessed"
    policy = Policy.parse((one.folder / "ledger.policy").read_text(encoding="utf-8"))
    return policy.judge(get(address).decode())


def state_of(one: w.Ward, name: str) -> tuple[str, str]:
    found = standing.read(one.folder / "ledger").witnesses.get(name, standing.Standing())
    return str(found.state), found.reason


def until(true: Callable[[], bool], one: w.Ward, what: str, seconds: float = 40) -> None:
    try:
        servers.wait_until(true, seconds=seconds, what=what)
    except TimeoutError as error:
        kept = standing.read(one.folder / "ledger")
        raise AssertionError(f"{error}: {kept}\n{one.last_words()}") from None


def witnessed(one: w.Ward) -> bool:
    return size(one) > 0 and size(one, "checkpoint.witnessed") == size(one)


def doctor(one: w.Ward) -> dict[str, tuple[bool, str]]:
    """What `radseal doctor` says of the witnesses; it fails where anything is wrong."""
    said = alone("doctor", "--site", one.folder, "--json", code=None)
    return {row["check"]: (row["ok"], row["words"]) for row in json.loads(said)}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[w.Ward, w.Ward]]:
    """North and south, which witness each other; both served."""
    north, south = site_at(tmp_path / "n", "north"), site_at(tmp_path / "s", "south")
    asks(north, as_witness(south, "south"))
    asks(south, as_witness(north, "north"))
    trusts(north, south)
    trusts(south, north)
    try:
        north.serve()
        south.serve()
        yield north, south
    finally:
        north.close()
        south.close()


def test_two_sites_witness_each_other(two: tuple[w.Ward, w.Ward]) -> None:
    north, south = two
    for one, other in ((north, "south"), (south, "north")):
        grow(one, 3)
        until(lambda one=one: witnessed(one), one, "a quorum")
        found = verdict(one)
        assert found.reached
        assert set(found.cosigned) == {other}
        until(lambda one=one, other=other: state_of(one, other) == ("ok", ""), one, "ok")
        assert doctor(one)[f"witness {other}"][0]
        assert doctor(one)["witness quorum"][0]
        assert doctor(one)["our witness"][0]
        status = json.loads(one.radseal("status", "--json"))
        assert status["witnesses"] == {other: "ok", "quorum": "ok"}
        states = said(one)
        assert states[-1] == "ok"
        assert all(a != b for a, b in pairwise(states))  # told on change only
        assert one.quiet_log()
    # Only the log's signature opens the door: what others say about it changes nothing.
    assert post(f"http://{servers.HOST}:{south.http_port}/witness/add-checkpoint", b"x") == 400


def test_a_split_view_is_refused_and_said(two: tuple[w.Ward, w.Ward], tmp_path: Path) -> None:
    north, _ = two
    grow(north, 3)
    until(lambda: witnessed(north), north, "a quorum")
    north.stop()
    twin = w.Ward(tmp_path / "twin", servers.free_port(), servers.free_port(), tmp_path / "twinlog")
    shutil.copytree(north.folder, twin.folder)
    twin.log.touch()
    text = (twin.folder / "site.toml").read_text(encoding="utf-8")
    text = text.replace(str(north.port), str(twin.port))
    text = text.replace(str(north.http_port), str(twin.http_port))
    (twin.folder / "site.toml").write_text(text, encoding="utf-8")
    try:
        north.serve()
        grow(north, 5, "1")
        until(lambda: witnessed(north), north, "a quorum")
        before = size(twin, "checkpoint.witnessed")
        grow(twin, 90, "2")  # the same keys sign another history, and a longer one
        twin.serve()
        until(lambda: state_of(twin, "south") == ("split", "shown"), twin, "the split view")
        ok, words = doctor(twin)["witness south"]
        assert not ok
        assert "another history" in words
        assert "radseal ledger continue NEW_ORIGIN" in words
        assert '"state": "split"' in twin.log.read_text(encoding="utf-8")
        assert size(twin, "checkpoint.witnessed") == before
        shown = (twin.folder / "ledger" / ".witness" / "south.note").read_text(encoding="utf-8")
        assert Checkpoint.parse(note.parse(shown)[0]).size >= before
        # Care goes on: the twin publishes, and says in its own log what it was told.
        until(lambda: "witness.status" in twin.verify().counts, twin, "the leaf")
        assert twin.ready()
        # The one that went on first is undisturbed.
        grow(north)
        until(lambda: witnessed(north), north, "a quorum")
        assert state_of(north, "south") == ("ok", "")
    finally:
        twin.close()


def test_a_roll_back_is_caught(two: tuple[w.Ward, w.Ward], tmp_path: Path) -> None:
    north, _ = two
    grow(north, 3)
    until(lambda: witnessed(north), north, "a quorum")
    north.stop()
    shutil.copytree(north.folder, tmp_path / "snapshot")
    north.serve()
    grow(north, 60)
    until(lambda: witnessed(north), north, "a quorum")
    seen = size(north)
    north.stop()
    shutil.rmtree(north.folder)
    shutil.copytree(tmp_path / "snapshot", north.folder)  # as a snapshot of the machine is
    north.serve()
    grow(north)
    until(lambda: state_of(north, "south") == ("rolled-back", "shown"), north, "the roll-back")
    ok, words = doctor(north)["witness south"]
    assert not ok
    assert f"has cosigned {seen} leaves" in words
    assert "radseal ledger continue NEW_ORIGIN" in words
    assert '"state": "rolled-back"' in north.log.read_text(encoding="utf-8")
    assert north.ready()
    grow(north, 2)  # care, and the log, go on
    # What doctor says to type works with what the witness showed.
    shown = north.folder / "ledger" / ".witness" / "south.note"
    assert f"--published ledger/.witness/{shown.name}" in words
    north.stop()
    new = "ledger.north.example/second"
    alone("ledger", "continue", new, "--published", shown, "--site", north.folder)
    assert north.verify().origin == new


def _read_request(connection: socket.socket) -> None:
    """Read head and body: who closes with something unread resets what he has said."""
    with connection.makefile("rb") as file:
        length = 0
        while (line := file.readline().strip().lower()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        file.read(length)


def _trickle(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not ended.wait(0.2):
        connection.sendall(b"x")


def _huge(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not ended.is_set():
        connection.sendall(b"x" * 65536)


def _says(text: bytes) -> Callable[[socket.socket, threading.Event], None]:
    return lambda connection, _ended: connection.sendall(text)


LIES = {
    "silent": lambda _connection, ended: ended.wait(30),
    "slow": _trickle,
    "huge": _huge,
    "broken": _says(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
    "forged": _says("HTTP/1.1 200 OK\r\n\r\n— w.lie.example AAAAAAAA\n".encode()),
    "loop": _says(b"HTTP/1.1 409 No\r\nContent-Type: text/x.tlog.size\r\n\r\n1\n"),
    "ahead": _says(b"HTTP/1.1 409 No\r\nContent-Type: text/x.tlog.size\r\n\r\n99999\n"),
    "gone": None,
}


@contextlib.contextmanager
def liars() -> Iterator[dict[str, int]]:
    """One port for each lie; "gone" has nobody behind it."""
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, lie in LIES.items():
            if lie is None:
                ports[name] = servers.free_port()
                continue
            listener = stack.enter_context(socket.create_server((servers.HOST, 0)))
            ports[name] = listener.getsockname()[1]

            def answer(connection: socket.socket, lie=lie) -> None:
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(30)
                    _read_request(connection)
                    lie(connection, ended)

            def serve(listener=listener, answer=answer) -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        threading.Thread(target=answer, args=(connection,), daemon=True).start()

            threading.Thread(target=serve, daemon=True).start()
        try:
            yield ports
        finally:
            ended.set()


def test_lying_and_absent_witnesses_are_shown_and_harm_nobody(tmp_path: Path) -> None:
    pacs = w.PACS()
    pacs.up()
    try:
        with liars() as ports, w.ward(tmp_path, [pacs]) as ward:
            lines = []
            for name, port in ports.items():
                key = note.Ed25519Cosigner.generate(
                    f"w.{name}.example", lambda n, name=name: name.encode().ljust(n, b".")
                )
                lines.append(f"witness {name} {note.vkey(key)} http://{servers.HOST}:{port}/w")
            asks(ward, *lines)
            ward.serve()
            w.insist(w.study(1), ward.port, until=time.monotonic() + 60)
            uid = str(w.study(1)[0].StudyInstanceUID)
            until(lambda: len(pacs.of(uid)) == w.KINDS, ward, "the delivery", 60)
            expected = {
                "silent": "behind", "slow": "behind", "huge": "behind", "broken": "behind",
                "gone": "behind", "forged": "refused", "loop": "refused", "ahead": "rolled-back",
            }  # fmt: skip
            until(
                lambda: all(state_of(ward, n)[0] == s for n, s in expected.items()),
                ward, "every witness's state", 120,
            )  # fmt: skip
            reasons = {name: state_of(ward, name)[1] for name in expected}
            assert reasons["silent"] == reasons["slow"] == "time-out"
            assert reasons["huge"] == "too-large"
            assert reasons["broken"] == "status-500"
            assert reasons["gone"] == "unreachable"
            assert reasons["loop"] == "conflict-loop"
            assert reasons["ahead"] == "claimed"
            said = doctor(ward)
            assert not any(said[f"witness {name}"][0] for name in expected)
            assert not said["witness quorum"][0]
            assert said["ledger"][0]
            assert ward.ready()
            assert (
                get(f"http://{servers.HOST}:{ward.http_port}/health/ready").decode().count("alarm")
                == 1
            )
            assert not (ward.folder / "ledger" / "checkpoint.witnessed").exists()
            counts = ward.verify().counts
            # Each change once, however often they were asked.
            assert counts["witness.status"] == len(expected), ward.log.read_text(encoding="utf-8")
            until(lambda: size(ward) == ward.verify().size, ward, "a checkpoint")
            assert ward.quiet_log()
    finally:
        pacs.down()


def test_a_witness_that_comes_back_catches_up(two: tuple[w.Ward, w.Ward]) -> None:
    north, south = two
    grow(north, 3)
    until(lambda: witnessed(north), north, "a quorum")
    south.kill()
    grow(north, 3)
    until(lambda: state_of(north, "south")[0] == "behind", north, "the lag")
    before = size(north)
    grow(north, 40)
    until(lambda: size(north) >= before + 40, north, "a checkpoint without a witness")
    south.serve()
    until(lambda: witnessed(north), north, "a quorum", 90)
    until(lambda: state_of(north, "south") == ("ok", ""), north, "ok")
    assert set(verdict(north).cosigned) == {"south"}


def test_a_witness_alone_needs_no_site(tmp_path: Path) -> None:
    north = site_at(tmp_path / "n", "north")
    port = servers.free_port()
    made = alone(
        "witness", "init", tmp_path / "w", "--name", "w.alone.example", "--as", "alone",
        "--url", f"http://{servers.HOST}:{port}/witness", "--json",
    )  # fmt: skip
    alone("witness", "trust", tmp_path / "w", north.folder / "ledger.vkey")
    asks(north, *json.loads(made)["lines"])  # both keys: both must sign
    command = [*RADSEAL, "witness", "serve", str(tmp_path / "w"), "--port", str(port)]
    ready = f"http://{servers.HOST}:{port}/health/live"
    with servers.running(command, tmp_path, ready=lambda: servers.http_ok(ready), name="witness"):
        try:
            north.serve()
            grow(north, 3)
            until(lambda: witnessed(north), north, "a quorum")
            assert set(verdict(north).cosigned) == {"alone", "alone-mldsa44"}
            listed = json.loads(alone("witness", "list", tmp_path / "w", "--json"))
            assert [row["origin"] for row in listed] == ["ledger.north.example/log"]
        finally:
            north.close()


def test_a_witness_that_lost_its_record_does_not_stop_the_site(tmp_path: Path) -> None:
    north = site_at(tmp_path / "n", "north")
    as_witness(north, "north")
    (north.folder / "witness" / "witness.db").unlink()
    try:
        north.serve()
        assert north.ready()
        address = f"http://{servers.HOST}:{north.http_port}/witness/add-checkpoint"
        assert post(address, b"x") == 404
        ok, words = doctor(north)["our witness"]
        assert not ok
        assert "make a new witness" in words
    finally:
        north.close()
