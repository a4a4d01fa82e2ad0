"""PostgreSQL is killed and comes back: images are still taken, and afterwards all goes on."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import ward as w

pytestmark = [pytest.mark.fault, pytest.mark.peer, pytest.mark.timeout(300)]


class Cluster:
    """A PostgreSQL that can be killed and started again with its data."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, servers.free_port()
        self._stack = contextlib.ExitStack()
        self.server: Any = None

    def start(self) -> None:
        self.server = self._stack.enter_context(
            servers.postgres(folder=self._folder, port=self._port)
        )

    def kill(self) -> None:
        self.server.server.kill()
        self._stack.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not below pytest's folder, which the user postgres cannot enter.
    with tempfile.TemporaryDirectory(prefix="radseal-postgres-") as folder:
        Path(folder).chmod(0o711)
        made = Cluster(Path(folder) / "cluster")
        try:
            made.start()
        except servers.MissingError as missing:
            pytest.skip(str(missing))
        yield made
        made.kill()


def test_a_database_that_comes_back_finds_everybody_waiting(
    tmp_path: Path, cluster: Cluster
) -> None:
    pacs = w.PACS()
    pacs.up()
    until = time.monotonic() + 240
    try:
        with w.ward(
            tmp_path, [pacs], database_url=cluster.server.create(), quiet_seconds=2
        ) as ward:
            ward.serve()
            ward.worker()
            servers.wait_until(lambda: "worker.ready" in ward.last_words(), what="the worker")
            acknowledged = {}
            for number in range(3):
                acknowledged |= w.insist(w.study(number), ward.port, until=until)
            pids = ward.pid(), ward.pid("worker")
            time.sleep(3)  # in the midst of the work
            cluster.kill()
            acknowledged |= w.insist(w.study(3), ward.port, until=time.monotonic() + 30)
            time.sleep(6)
            assert not ward.ready()
            cluster.start()
            wanted = {str(w.study(n)[0].StudyInstanceUID): "delivered" for n in range(4)}
            try:
                servers.wait_until(lambda: ward.states() == wanted, seconds=120, what="the end")
            except TimeoutError as error:
                raise AssertionError(f"{error}: {ward.states()}\n{ward.last_words()}") from None
            assert ward.alive()
            assert ward.alive("worker")
            assert (ward.pid(), ward.pid("worker")) == pids
            servers.wait_until(ward.ready, what="readiness")
            assert ward.held() == {uid: [digest] for uid, digest in acknowledged.items()}
            assert all(len(set(digests)) == 1 for digests in pacs.received.values())
            assert {len(uids) for uids in pacs.of_study.values()} == {w.KINDS}
            ward.stop()
            ward.stop("worker")
            report = ward.verify()
            assert ward.quiet_log(), ward.last_words()
            assert report.counts["study.closed"] == 4
            assert report.counts["result.delivered"] == 4 * w.KINDS
            assert report.counts.get("inference.failed", 0) == 0
    finally:
        pacs.down()


def test_a_database_that_is_not_there_is_a_sentence(tmp_path: Path, cluster: Cluster) -> None:
    with w.ward(tmp_path, [], database_url=cluster.server.create()) as ward:
        cluster.kill()
        for command in ("serve", "worker", "studies"):
            ward.radseal(command, code=1)
            said = ward.errors.strip()
            assert said.startswith("radseal: the database does not answer"), said
            assert len(said.splitlines()) == 1
        cluster.start()
