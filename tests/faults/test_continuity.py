"""A site is copied at work, dies, comes back and finishes; kill -9 amid changes of its log."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import servers
import ward as w

from bridge import site
from bridge.store import copies
from ledger.verify import read_vkeys, verify_log

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

TURNS = 20 if os.environ.get("RADSEAL_SOAK") == "full" else 2
NEW = "soak.radseal.example/after"
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)]


@pytest.fixture
def pacs() -> Iterator[w.PACS]:
    made = w.PACS()
    made.up()
    yield made
    made.down()


def radseal(*words: object, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bridge", *map(str, words)], capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, **more},
    )  # fmt: skip
    assert code in (None, done.returncode), done.stdout + done.stderr
    return done


def stranger(folder: Path) -> list[str]:
    """`python -m ledger verify` on a log folder with the vkeys beside it."""
    done = subprocess.run(
        [sys.executable, "-m", "ledger", "verify", folder / "ledger",
         "--vkey", folder / "ledger.vkey"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("database", DATABASES)
def test_a_copy_of_a_working_site_finishes_every_study_once(
    tmp_path: Path, pacs: w.PACS, database: str, request: Any
) -> None:
    url = new = None
    if database == "postgresql":
        cluster = request.getfixturevalue("postgres")
        url, new = cluster.create(), cluster.create()
    pacs.answer = lambda _uid: 0xA700  # nothing is delivered before the copy
    until = time.monotonic() + 200
    numbers = range(4)
    with w.ward(tmp_path, [pacs], database_url=url) as ward:
        ward.serve()
        w.insist(w.study(0), ward.port, until=until)
        servers.wait_until(
            lambda: "result.composed" in [one["code"] for one in _lines(ward, 0)], seconds=60,
            what="a composed result",
        )  # fmt: skip
        acknowledged: dict[int, dict[str, str]] = {}

        def send(number: int) -> None:
            acknowledged[number] = w.insist(w.study(number), ward.port, until=until)

        senders = [threading.Thread(target=send, args=(number,)) for number in numbers[1:]]
        for sender in senders:
            sender.start()
        ward.radseal("backup", tmp_path / "b.tar")
        for sender in senders:
            sender.join()
        ward.kill()
        assert pacs.received == {}
        more = {} if new is None else {"RADSEAL_DATABASE__URL": new}
        folder = tmp_path / "restored"
        published = ward.folder / "ledger"
        radseal(
            "restore", tmp_path / "b.tar", folder, "--published", published, "--continue-as", NEW,
            **more,
        )  # fmt: skip
        if new is not None:
            text = (folder / "site.toml").read_text(encoding="utf-8")
            (folder / "site.toml").write_text(text.replace(str(url), new), encoding="utf-8")
        back = replace(ward, folder=folder, _running={})
        pacs.answer = lambda _uid: 0x0000
        try:
            back.serve()
            for number in numbers:  # the modality sends again what it has; known images are known
                w.insist(w.study(number), back.port, until=until)
            servers.wait_until(
                lambda: list(back.states().values()) == ["delivered"] * len(numbers), seconds=120,
                what="deliveries after the restore",
            )  # fmt: skip
            assert back.stop() == 0
        finally:
            back.close()
        for number in numbers:
            uids = pacs.of(str(w.study(number)[0].StudyInstanceUID))
            assert len(uids) == w.KINDS
            assert all(len(pacs.received[uid]) == 1 for uid in uids)
        assert ward.quiet_log()
        assert stranger(folder)[-1].startswith(f"OK {NEW}: ")
        assert not [line for line in stranger(folder) if line.startswith("still open")]
        assert stranger(folder / "ledger-closed/1")[-1].startswith(f"OK {w.ORIGIN}: ")
        assert (folder / "ledger-closed/1/ledger/checkpoint").stat().st_size


def _lines(ward: w.Ward, number: int) -> list[dict[str, Any]]:
    uid = str(w.study(number)[0].StudyInstanceUID)
    try:
        return list(ward.why(uid)["lines"])
    except AssertionError:
        return []


@pytest.mark.peer
def test_a_log_on_postgresql_ends_and_goes_on(
    tmp_path: Path, pacs: w.PACS, database_url: str
) -> None:
    with w.ward(tmp_path, [pacs], database_url=database_url) as ward:
        ward.serve()
        refused = radseal(
            "ledger", "continue", NEW, "--current", "--site", ward.folder, code=2
        )  # fmt: skip
        assert "stop it first" in refused.stderr
        w.insist(w.study(0), ward.port, until=time.monotonic() + 60)
        servers.wait_until(
            lambda: list(ward.states().values()) == ["delivered"], seconds=60, what="delivery"
        )
        assert ward.stop() == 0
        ward.worker()  # it has the log open, and serves no port
        servers.wait_until(
            lambda: "worker.ready" in ward.log.read_text(encoding="utf-8"), seconds=60,
            what="a worker",
        )  # fmt: skip
        refused = radseal("ledger", "continue", NEW, "--current", "--site", ward.folder, code=1)
        assert "a `radseal worker` or another command uses this site's log" in refused.stderr
        ward.stop("worker")
        ward.radseal("ledger", "continue", NEW, "--current", "--reason", "compromise")
        ward.radseal("ledger", "continue", NEW, "--current")
        ward.serve()
        w.insist(w.study(1), ward.port, until=time.monotonic() + 60)
        servers.wait_until(
            lambda: list(ward.states().values()) == ["delivered"] * 2, seconds=60, what="delivery"
        )
        assert ward.stop() == 0
        assert stranger(ward.folder)[-1].startswith(f"OK {NEW}: ")
        assert "log.closed               1" in stranger(ward.folder / "ledger-closed/1")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site with the tiny model and no service."""
    place, pacs = tmp_path_factory.mktemp("worked"), w.PACS()
    with w.ward(place, [pacs]) as ward:
        yield ward.folder


@pytest.mark.soak
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("ledger", "continue", NEW, "--current"), ("", "ledger-closed/1")),
        (("ledger", "continue", NEW, "--behind"), ("", "ledger-closed/1")),
        (("key", "rotate"), ("",)),
    ],
)
def test_a_command_that_is_killed_is_typed_again(
    tmp_path: Path, worked: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    started = time.monotonic()
    folder = Path(shutil.copytree(worked, tmp_path / "whole"))
    radseal(*words, "--site", folder)
    whole = time.monotonic() - started
    killed = 0
    for turn in range(TURNS):
        folder = Path(shutil.copytree(worked, tmp_path / f"{turn}"))
        command = [sys.executable, "-m", "bridge", *words, "--site", str(folder)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(whole * (0.4 + turn * 0.6 / TURNS))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        radseal(*words, "--site", folder)
        for part in parts:
            place = folder / part
            report = verify_log(place / "ledger", read_vkeys((place / "ledger.vkey").read_text()))
            assert report.counts.get("log.closed", 0) == ("--current" in words and part != "")
        assert site.read(folder).origin == (w.ORIGIN if words[0] == "key" else NEW)
        if words[0] == "key":
            assert report.counts["key.rotated"] == 1
    assert killed


def test_only_one_of_published_behind_and_current(tmp_path: Path, worked: Path) -> None:
    folder = Path(shutil.copytree(worked, tmp_path / "s"))
    for more in ((), ("--behind", "--current"), ("--published", "x", "--behind")):
        done = radseal("ledger", "continue", NEW, *more, "--site", folder, code=2)
        assert "say one of" in done.stderr
    done = radseal("ledger", "continue", w.ORIGIN, "--current", "--site", folder, code=2)
    assert "choose another name" in done.stderr
    done = radseal("key", "retire-old", "--site", folder, code=1)
    assert "radseal key rotate" in done.stderr
    assert not (folder / "continuing.json").exists()


def test_a_rolled_back_database_is_refused_and_can_go_on_under_a_new_name(
    tmp_path: Path, worked: Path
) -> None:
    folder = Path(shutil.copytree(worked, tmp_path / "s"))
    copies.copy_sqlite(folder / "ledger.db", tmp_path / "old.db")
    radseal("key", "rotate", "--site", folder)
    for path in folder.glob("ledger.db*"):
        path.unlink()
    (tmp_path / "old.db").rename(folder / "ledger.db")  # the snapshot of a database alone
    refused = radseal("status", "--site", folder, code=None)
    assert refused.returncode in (1, 2)
    assert "ahead of the database" in refused.stderr
    radseal("ledger", "continue", NEW, "--behind", "--site", folder)
    assert stranger(folder)[-1].startswith(f"OK {NEW}: ")
    assert stranger(folder / "ledger-closed/1")[-1].startswith(f"OK {w.ORIGIN}: ")
