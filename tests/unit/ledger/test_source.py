"""Logs read from hostile folders and servers; checkpoints kept earlier; witnesses."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import forger
import pytest

from ledger import source, verify
from ledger.__main__ import main
from ledger.errors import VerifyError
from ledger.policy import Policy

WITNESSES = {name: forger.Key(f"{name}.example", 4, name) for name in ("a", "b")}
POLICY = (
    "".join(f"log {key}\n" for key in forger.VKEYS)
    + "".join(f"witness {name} {key.vkey}\n" for name, key in WITNESSES.items())
    + "group both all a b\nquorum both\n"
)


@pytest.fixture
def log():
    made = forger.Forger().open()
    for number in range(40):
        made.study(str(number))
    return made


@pytest.fixture
def folder(log, tmp_path):
    return log.write(tmp_path / "log")


def refusal(where, trust=forger.VKEYS, **more):
    with pytest.raises(VerifyError) as found:
        verify.audit(where, trust, **more)
    return str(found.value)


# --- folders ------------------------------------------------------------------------------------


def test_what_lies_beside_a_log_is_said_and_not_read(folder):
    (folder / ".lock").touch()
    (folder / "notes.txt").write_text("x")
    assert verify.verify_log(folder, forger.VKEYS).beside == ("notes.txt",)


def test_a_pipe_a_link_a_folder_or_a_huge_file_under_tile_is_refused(folder):
    inside = folder / "tile/0"
    os.mkfifo(inside / "pipe")
    assert refusal(folder) == "tile/0/pipe: is not a file of this log"
    (inside / "pipe").unlink()
    place = folder / "tile/entries/001.p"
    name = next(place.iterdir()).name
    data = (place / name).read_bytes()
    for make, words in (
        (lambda path: os.mkfifo(path), "is no plain file"),
        (lambda path: path.mkdir(), "is no plain file"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "at most"),
    ):
        (place / name).unlink()
        make(place / name)
        assert words in refusal(folder)
        (place / name).rmdir() if (place / name).is_dir() else (place / name).unlink()
        (place / name).write_bytes(data)
    (inside / "x001").symlink_to("/usr")
    assert refusal(folder) == "tile/0/x001: is a link; a log has plain folders"


def test_a_partial_tile_that_went_while_it_was_read_is_the_full_ones_beginning(log, tmp_path):
    whole = log.write(tmp_path / "whole")
    early = forger.Forger()
    early.leaves = log.leaves[:100]
    (whole / "checkpoint").write_text(early.note())
    report = verify.audit(whole, forger.VKEYS)
    assert report.size == 100
    assert "tile/0/000" in report.ahead
    for name in ("tile/entries/000", "tile/0/000"):
        data = (whole / name).read_bytes()
        for spoiled in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), data[:20], data[:8000]):
            (whole / name).write_bytes(spoiled)
            assert refusal(whole).startswith(("tile/entries/000: ", "tile/0/000"))
        (whole / name).write_bytes(data)
    verify.audit(whole, forger.VKEYS)


# --- what is printed ----------------------------------------------------------------------------


def test_a_name_cannot_pass_for_words_of_the_verifier(folder, capsys):
    (folder / "tile/x\nOK forged.example.org: 99 leaves\x1b[8m\u202e").touch()
    assert main(["verify", str(folder), "--vkey", forger.VKEYS[0]]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("FAIL tile/x\\nOK forged.example.org: 99 leaves\\x1b[8m\\u202e: ")


def test_a_name_that_is_no_text_is_printed(folder):
    (folder / os.fsdecode(b"tile/\xff")).touch()
    assert refusal(folder).encode() == b"tile/\\udcff: is not a file of this log"


def test_a_proof_has_a_largest_size_and_is_a_plain_file(tmp_path, capsys):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 32)
    assert main(["verify", str(tmp_path / "big"), "--vkey", forger.VKEYS[0]]) == 1
    assert "at most 2000000 can be true" in capsys.readouterr().out
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "absent"):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(tmp_path / name), "--vkey", forger.VKEYS[0]])
        assert ended.value.code == 2
        assert f"{name} cannot be read" in capsys.readouterr().err


def test_a_vkey_longer_than_a_files_name_is_a_vkey(folder, capsys):
    key = forger.Key("long." * 60 + "example", 1, "x")
    assert main(["verify", str(folder), "--vkey", key.vkey]) == 1
    assert "no key that you trust has signed" in capsys.readouterr().out


# --- servers ------------------------------------------------------------------------------------


@contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder, changed=None):
    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

        def do_GET(self):
            if changed is None or not changed(self):
                super().do_GET()

    return Files


def test_a_log_is_verified_over_http(folder, capsys):
    local = verify.audit(folder, forger.VKEYS)
    with serving(files_of(folder)) as url:
        for address in (url, url + "/"):
            assert verify.audit(address, forger.VKEYS) == local
        assert main(["verify", url, "--vkey", forger.VKEYS[0]]) == 0
        assert f"OK {forger.ORIGIN}: {local.size} leaves" in capsys.readouterr().out
        assert "nothing/checkpoint" not in refusal(url + "/nothing")
        (folder / "tile/entries/000").write_bytes(b"x")
        assert refusal(url).startswith("tile/entries/000: ")


def test_a_port_where_nobody_answers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "cannot be fetched" in refusal(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["http://", "https:///x"])
def test_an_address_without_a_host(url):
    assert "is no address of a log" in refusal(url)


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://x/y", "data:,x", "gopher://x", "/again"]
)
def test_a_server_leads_nowhere_else(target, folder):
    def lead(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()
        return True

    with serving(files_of(folder, lead)) as url:
        words = refusal(url)
        assert words.startswith("checkpoint.witnessed: ")
        assert "302" in words or "cannot be fetched" in words


def test_a_server_may_move_a_log_to_another_http_address(folder):
    with serving(files_of(folder)) as there:

        def lead(handler):
            handler.send_response(301)
            handler.send_header("Location", there + handler.path)
            handler.end_headers()
            return True

        with serving(files_of(folder, lead)) as url:
            assert verify.audit(url, forger.VKEYS).size == len(forger_leaves(folder))


def forger_leaves(folder):
    return range(int((folder / "checkpoint").read_text().split("\n")[1]))


class Endless(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 65_536)
        except OSError:
            pass


class Broken(Endless):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x")


class Angry(Endless):
    def do_GET(self):
        self.send_error(503)


class Slow(Endless):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                if self.server.stopped.wait(0.05):
                    return
        except OSError:
            pass


@pytest.mark.parametrize(
    ("handler", "words"),
    [(Endless, "is longer"), (Broken, "cut short"), (Angry, "answers 503")],
)
def test_a_server_that_lies_about_length_or_fails(handler, words):
    with serving(handler) as url:
        assert words in refusal(url)


def test_a_server_that_drips(monkeypatch):
    monkeypatch.setattr(source, "_SECONDS", 0.3)
    monkeypatch.setattr(ThreadingHTTPServer, "stopped", threading.Event(), raising=False)
    with serving(Slow) as url:
        assert "did not arrive within" in refusal(url)
        ThreadingHTTPServer.stopped.set()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
    ],
    ids=["continue", "header", "chunk"],
)
def test_a_server_whose_head_never_ends(first, again, monkeypatch):
    monkeypatch.setattr(source, "_SECONDS", 0.4)
    ended = threading.Event()

    def drip(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(9999)
            connection.sendall(first)
            while not ended.wait(0.05):
                connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        assert "did not arrive within" in refusal(f"http://127.0.0.1:{listener.getsockname()[1]}")
        ended.set()


def test_a_server_that_says_something_else_the_second_time(folder, tmp_path):
    """It shows one history while it is read, another when the saved checkpoint is compared."""
    other = forger.Forger().open()
    for number in range(40):
        other.study(f"other {number}")
    saved = other.note()
    forged = other.write(tmp_path / "other")
    asked = set()

    def lie(handler):
        again = handler.path in asked
        asked.add(handler.path)
        if again:
            handler.directory = str(forged)
        return False

    with serving(files_of(folder, lie)) as url:
        assert "saved checkpoint: another history" in refusal(url, saved=saved)


def test_a_server_that_hides_a_doubled_leaf_the_second_time(log, tmp_path):
    folder = log.write(tmp_path / "honest")
    log.leaves.append(log.leaves[-1])
    doubled = log.write(tmp_path / "doubled")
    log.leaves[-1] = log.leaves[-1].replace(b"key/", b"kex/")
    other = log.write(tmp_path / "other")
    asked = set()

    def lie(handler):
        again = handler.path in asked and "entries" in handler.path
        asked.add(handler.path)
        if again:
            handler.directory = str(other)
        return False

    assert verify.audit(folder, forger.VKEYS).broken == 0
    assert verify.audit(doubled, forger.VKEYS).broken == 1
    assert verify.audit(other, forger.VKEYS).broken == 0
    with serving(files_of(doubled, lie)) as url:
        assert "was something else when it was read before" in refusal(url)


# --- checkpoints kept earlier, and witnesses ----------------------------------------------------


def at(log, size, keys=(forger.ED, forger.ML)):
    early = forger.Forger()
    early.leaves, early.now = log.leaves[:size], log.now
    return early.note(keys)


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 300])
def test_a_log_continues_what_was_saved(size, log, folder):
    assert verify.audit(folder, forger.VKEYS, saved=at(log, size)).size == len(log.leaves)


def test_a_rolled_back_log_and_a_split_view_are_caught(log, folder, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.write_text(log.note())
    arguments = ["--vkey", forger.VKEYS[0], "--saved", str(kept)]
    assert main(["verify", str(folder), *arguments]) == 0
    older = forger.Forger()
    older.leaves, older.now = log.leaves[:300], log.now
    assert main(["verify", str(older.write(tmp_path / "older")), *arguments]) == 1
    assert (
        capsys.readouterr()
        .out.strip()
        .endswith(
            f"FAIL checkpoint: has 300 leaves and the saved checkpoint {len(log.leaves)}:"
            " the log was rolled back"
        )
    )
    split = forger.Forger().open()
    split.study("another history")
    split.leaves += log.leaves[len(split.leaves) :]
    for more in ([], [log.leaves[5]]):
        split.leaves += more
        shutil.rmtree(tmp_path / "split", ignore_errors=True)
        main(["verify", str(split.write(tmp_path / "split")), *arguments])
        assert "FAIL saved checkpoint: another history" in capsys.readouterr().out
    stranger = forger.Key("other.example", 1, "other")
    kept.write_text(forger.Forger("other.example").open().note([stranger]))
    assert main(["verify", str(folder), *arguments]) == 1
    assert "FAIL saved checkpoint: no key that you trust" in capsys.readouterr().out
    assert main(["verify", str(folder), *arguments, "--vkey", stranger.vkey]) == 1
    assert "FAIL saved checkpoint: is of other.example" in capsys.readouterr().out


def test_a_log_has_as_many_leaves_as_the_auditor_asks_for(log, folder):
    size = len(log.leaves)
    assert verify.audit(folder, forger.VKEYS, min_size=size).size == size
    assert refusal(folder, min_size=size + 1).startswith(f"checkpoint: has {size} leaves")


def test_a_quorum_must_have_cosigned(log, folder, tmp_path, capsys):
    policy = Policy.parse(POLICY)
    assert refusal(folder, policy).startswith("checkpoint.witnessed: not witnessed yet")
    one, both = [WITNESSES["a"]], list(WITNESSES.values())
    witnessed = folder / "checkpoint.witnessed"
    witnessed.write_text(at(log, 300, [forger.ED, forger.ML, *one]))
    assert "not witnessed yet" in refusal(folder, policy)
    witnessed.write_text(at(log, 300, [forger.ED, forger.ML, *both]))
    report = verify.audit(folder, policy)
    assert (report.witnessed, sorted(report.cosigned)) == (300, ["a", "b"])
    (tmp_path / "policy").write_text(POLICY)
    assert main(["verify", str(folder), "--policy", str(tmp_path / "policy")]) == 0
    out = capsys.readouterr().out
    assert "not witnessed yet: the leaves from 300 on" in out
    assert "witnessed: by a at 2026-03-01T" in out
    assert "unwitnessed" not in out
    (folder / "checkpoint").write_text(log.note([forger.ED, forger.ML, *both]))
    assert verify.audit(folder, policy).witnessed == len(log.leaves)
    report = verify.audit(folder, forger.VKEYS)
    assert report.not_checked == tuple(f"{k.name}+{k.key_id.hex()}" for k in both)
    assert report.witnessed == 0


def test_witnesses_who_saw_another_history_are_heard(log, folder):
    split = forger.Forger()
    split.leaves, split.now = [*log.leaves[:299], log.leaves[0]], log.now
    keys = [forger.ED, forger.ML, *WITNESSES.values()]
    (folder / "checkpoint.witnessed").write_text(split.note(keys))
    for trust in (forger.VKEYS, Policy.parse(POLICY)):
        assert refusal(folder, trust).startswith("checkpoint.witnessed: another history")
    split.leaves = [*log.leaves, log.leaves[0]]
    (folder / "checkpoint.witnessed").write_text(split.note(keys))
    assert "rolled back" in refusal(folder)
    (folder / "checkpoint.witnessed").write_bytes(b"\xff")
    assert refusal(folder) == "checkpoint.witnessed: is not UTF-8"


def test_a_quorum_over_an_empty_tree_has_witnessed_nothing(log, folder, capsys, tmp_path):
    """A witness that saw the log before its first leaf says nothing of the leaves."""
    witness = forger.Key("w.example", 4, "w")
    policy = tmp_path / "policy"
    lines = "".join(f"log {key}\n" for key in forger.VKEYS)
    policy.write_text(f"{lines}witness w {witness.vkey}\nquorum w\n")

    def seen(size, *more):
        text = at(log, size)
        line = witness.line(text.split("\n\n")[0] + "\n", int(log.now.timestamp()) + 1)
        (folder / "checkpoint.witnessed").write_text(text + line)
        status = main(["verify", str(folder), "--policy", str(policy), *more])
        return status, capsys.readouterr().out.strip().split("\n")[-1]

    whole = len(log.leaves)
    words = "FAIL checkpoint.witnessed: not witnessed yet: your policy asks for w"
    assert seen(0) == (1, words)
    status, last = seen(300)
    assert (status, last.split(", ")[0]) == (
        0, f"OK {forger.ORIGIN}: {whole} leaves (300 witnessed)",
    )  # fmt: skip
    assert seen(300, "--min-size", "300")[0] == 0
    words = "FAIL checkpoint.witnessed: 300 leaves are witnessed; you asked for 301"
    assert seen(300, "--min-size", "301") == (1, words)
    policy.write_text(f"{lines}witness w {witness.vkey}\nquorum none\n")
    status, last = seen(300, "--min-size", "301")
    assert (status, last.split(", ")[0]) == (0, f"OK {forger.ORIGIN}: {whole} leaves")
    report = verify.audit(folder, Policy.parse(policy.read_text()))
    assert report.witnessed == 300
    seen(0)
    report = verify.audit(folder, Policy.parse(policy.read_text()))
    assert (report.witnessed, report.cosigned) == (0, {})
