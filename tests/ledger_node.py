"""One of several nodes on one log: `ledger_node.py FOLDER START COUNT [POSTGRESQL_URL]`.

Sixteen threads append, and this one sequences when it may. Standard output has the number of
each leaf that was acknowledged, then "done"; standard error each kind of refusal, once.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import paper_log as paper
import tall_log as tall

from bridge.logstore import PostgresStore
from ledger.errors import LogError
from ledger.log import Log, open_log
from ledger.sequencer import sequence


def opened(folder: Path, url: str | None) -> Log:
    """The log in SQLite beside its files, or in a PostgreSQL database."""
    if url is None:
        return paper.Site(folder, opened=False).log
    return open_log(folder, PostgresStore(url), paper.ORIGIN, paper.signers())


def main(folder: str, start: str, count: str, url: str | None = None) -> None:
    log = opened(Path(folder), url)
    numbers = iter(range(int(start), int(start) + int(count)))
    speak = threading.Lock()

    def work() -> None:
        while True:
            with speak:
                number = next(numbers, None)
            if number is None:
                return
            log.append(f"key/{number}", tall.config_leaf(number))
            with speak:
                os.write(1, f"{number}\n".encode())

    threads = [threading.Thread(target=work) for _ in range(16)]
    for one in threads:
        one.start()
    refusals: set[str] = set()
    while any(one.is_alive() for one in threads):
        try:
            sequence(log, paper.NOW)
        except LogError as error:
            kind = type(error).__name__
            if kind not in refusals:  # a pipe that nobody reads would fill, and hold this up
                os.write(2, f"{kind}\n".encode())
            refusals.add(kind)
    os.write(1, b"done\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
