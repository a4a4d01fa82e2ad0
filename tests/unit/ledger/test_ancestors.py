"""What a log carries, compared with the logs before it: `verify --previous`."""

from __future__ import annotations

import json
from datetime import timedelta

import forger
import pytest

from ledger.__main__ import main

OLDEST, OLD = "oldest.example.org/log", "old.example.org/log"
KEYS = {
    origin: [forger.Key(origin, kind, origin) for kind in (1, 6)] for origin in (OLDEST, OLD)
} | {forger.ORIGIN: [forger.ED, forger.ML]}


class Site:
    """Three logs, each going on where the one before ended; what was said in the first is used."""

    def __init__(self, folder):
        self.folder = folder
        self.logs = {OLDEST: forger.Forger(OLDEST).open(KEYS[OLDEST])}
        self.whose = self.logs[OLDEST].study("a")
        told = self.logs[OLDEST].leaves[-9:-7]
        assert [json.loads(data)["type"] for data in told] == ["study.received", "input.sealed"]
        self.go_on(OLDEST, OLD, told)
        self.go_on(OLD, forger.ORIGIN, self.logs[OLD].leaves[-2:])

    def go_on(self, before, origin, told):
        self.logs[before].now += timedelta(days=1)
        new = self.logs[origin] = forger.Forger(origin).go_on(self.logs[before], KEYS[origin])
        for data in told:
            self.carry(new, data, before)

    def carry(self, new, data, origin):
        new.carry(data, origin)
        was = json.loads(data).get("carried")
        if was is not None:
            record = json.loads(new.leaves[-1])
            record["carried"]["before"] = was
            new.leaves[-1] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
            made = forger.text(forger.sha(b"\0", new.leaves[-1]))
            new.here[record["carried"]["leaf"]] = made

    def verify(self, *previous):
        arguments = ["verify", str(self.write(forger.ORIGIN))]
        for key in [key for keys in KEYS.values() for key in keys]:
            arguments += ["--vkey", key.vkey]
        for origin in previous:
            arguments += ["--previous", str(self.write(origin))]
        return main(arguments)

    def write(self, origin):
        name = origin.partition(".")[0]
        return self.logs[origin].write(self.folder / name, KEYS[origin])


@pytest.fixture
def logs(tmp_path):
    return Site(tmp_path)


def noted(capsys):
    lines = capsys.readouterr().out.strip().split("\n")
    return [line.removeprefix("noted: ") for line in lines if line.startswith("noted: ")], lines[-1]


def test_alone_nothing_that_is_carried_is_proven(logs, capsys):
    assert logs.verify() == 0
    assert noted(capsys)[0] == [
        f"2 leaves are carried from {OLD}; they are proven only together with that log"
    ]


def test_each_earlier_log_that_is_brought_proves_what_was_carried_from_it(logs, capsys):
    assert logs.verify(OLD) == 0
    proven = f"2 leaves are carried from {OLD}, which was verified too: all stand in it"
    rest = f"2 leaves are carried from {OLDEST}; they are proven only together with that log"
    assert noted(capsys)[0] == [proven, rest]
    assert logs.verify(OLD, OLDEST) == 0
    assert noted(capsys)[0] == [proven, proven.replace(OLD, OLDEST)]


def test_an_invented_leaf_stands_in_no_earlier_log(logs, capsys):
    logs.logs[OLD].received("never said there")
    invented = logs.logs[OLD].leaves[-2]
    del logs.logs[OLD].leaves[-2:]
    new = logs.logs[forger.ORIGIN]
    new.carry(invented.replace(b"2026-03-02", b"2026-03-01"), OLD)
    assert logs.verify(OLD) == 0
    words = noted(capsys)[0][0]
    assert f"1 of them do not stand in it (leaf {len(new.leaves) - 1} of {new.origin})" in words


def test_another_log_than_the_one_that_ended_is_refused(logs, capsys):
    assert logs.verify(OLDEST) == 1
    assert "bring the newest of the earlier logs first" in noted(capsys)[1]
    assert logs.verify(OLD, OLDEST, OLDEST) == 1
    assert f"{OLDEST} continues no earlier log" in noted(capsys)[1]


def test_another_history_of_it_is_refused(logs, capsys):
    old = logs.logs[OLD]
    old.leaves[1] = old.leaves[1].replace(b"1" * 64, b"2" * 64)
    assert logs.verify(OLD) == 1
    assert "names another history of old.example.org/log" in noted(capsys)[1]


def test_an_unlawful_or_damaged_earlier_log_is_refused(logs, capsys):
    old = logs.logs[OLD]
    old.say("config.changed", {"digest": "3" * 64, "previous": "2" * 64})
    assert logs.verify(OLD) == 1
    assert "FAIL " in (last := noted(capsys)[1])
    assert "R9: the settings it says it replaces are not those recorded last" in last
    del old.leaves[-1]
    folder = logs.write(OLD)
    path = next(folder.glob("tile/0/*.p/*"))
    path.write_bytes(bytes(len(path.read_bytes())))
    logs.write = lambda origin, write=logs.write: folder if origin == OLD else write(origin)
    assert logs.verify(OLD) == 1
    assert f"FAIL {folder}: tile/0/" in noted(capsys)[1]


def test_a_copy_of_it_that_is_behind_says_so(logs, capsys):
    del logs.logs[OLD].leaves[-1]
    assert logs.verify(OLD) == 0
    words = noted(capsys)[0]
    assert words[0].endswith("leaves of old.example.org/log were signed; the copy that you "
                             f"brought has {len(logs.logs[OLD].leaves)}")  # fmt: skip
    assert "1 of them do not stand in it" in words[1]


def test_it_is_about_a_log(tmp_path):
    (tmp_path / "x.tlog-proof").write_text("x")
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path / "x.tlog-proof"), "--vkey", forger.ED.vkey,
              "--previous", str(tmp_path)])  # fmt: skip
