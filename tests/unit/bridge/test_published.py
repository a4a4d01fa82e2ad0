"""What others have seen of a log is read from a file, a folder or an address, and compared."""

from __future__ import annotations

import http.server
import threading

import bench
import pytest

from bridge import site
from bridge.errors import NotFound, Refused, WrongUse
from bridge.home import create, open_rooms, publish
from bridge.origins.published import Standing, compare, fetch
from ledger.checkpoint import Checkpoint
from ledger.verify import read_vkeys


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = create(tmp_path_factory.mktemp("published") / "s", "n", bench.ORIGIN).folder
    made = open_rooms(site.read(folder), None)
    for number in range(4):
        made.record.say("config.changed", f"config/{number}", {"digest": f"{number:064x}"})
        publish(made)
    return made


@pytest.fixture
def vkeys(rooms):
    return read_vkeys((rooms.folder / "ledger.vkey").read_text())


@pytest.fixture
def address(rooms):
    """The log's folder behind HTTP, as a mirror serves it."""
    folder = str(rooms.folder)

    class Mirror(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=folder)

        def log_message(self, *given):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_checkpoint_is_read_from_wherever_it_lies(rooms, vkeys, address):
    mine = rooms.record.log.checkpoint()
    log = rooms.folder / "ledger"
    for where in (log, log / "checkpoint", f"{address}/ledger", f"{address}/ledger/checkpoint"):
        assert fetch(str(where), vkeys) == mine
    with pytest.raises(NotFound, match="HTTP 404"):
        fetch(f"{address}/nothing", vkeys)
    with pytest.raises(NotFound):
        fetch("http://127.0.0.1:1/x", vkeys)
    with pytest.raises(WrongUse):
        fetch("file:///etc/passwd", vkeys)
    with pytest.raises(Refused, match="no checkpoint that this log's keys signed"):
        fetch(str(rooms.folder / "site.toml"), vkeys)


def test_where_a_log_stands(rooms):
    log = rooms.record.log
    size = log.size()
    others = {
        Standing.EQUAL: log.checkpoint(),
        Standing.AHEAD: Checkpoint(bench.ORIGIN, 2, log.root(2)),
        Standing.BEHIND: Checkpoint(bench.ORIGIN, size + 1, bytes(32)),
        Standing.OTHER: Checkpoint(bench.ORIGIN, size, bytes(32)),
    }
    assert {standing: compare(log, point) for standing, point in others.items()} == {
        standing: standing for standing in others
    }
    assert compare(log, Checkpoint(bench.ORIGIN, 2, bytes(32))) is Standing.OTHER
    with pytest.raises(Refused, match="this log is"):
        compare(log, Checkpoint("x.example/log", 2, bytes(32)))
