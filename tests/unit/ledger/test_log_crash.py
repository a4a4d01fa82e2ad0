"""A crash at every single write, before it or just after it: nothing acknowledged is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ledger import leaf, verify


class Crash(BaseException):
    """The process is gone."""


class Clock:
    """Counts writes; crashes at the n-th, before it happened or after it did."""

    def __init__(self, at, after):
        self.count, self.at, self.after = 0, at, after

    def wrap(self, act):
        def acted(*given, **named):
            self.count += 1
            if self.count == self.at and not self.after:
                raise Crash
            result = act(*given, **named)
            if self.count == self.at:
                self.at = -1
                raise Crash
            return result

        return acted


def install(clock, monkeypatch, site):
    for owner, name in (
        (os, "write"), (os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "unlink"),
        (Path, "rmdir"), (site.store, "assign"), (site.store, "advance"), (site.store, "discard"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, clock.wrap(getattr(owner, name)))


def prepared(folder, paper, published):
    """A site with `published` leaves under a checkpoint and 20 more that wait."""
    folder.mkdir()
    site = paper.Site(folder)
    site.fill(published - 1)
    site.publish()
    waiting = site.fill(20)
    site.store.close()
    return site.number, waiting


def opened(template, folder, paper, number):
    shutil.copytree(template, folder)
    site = paper.Site(folder, opened=False)
    site.number = number
    return site


def count_writes(site):
    clock = Clock(0, False)
    with pytest.MonkeyPatch.context() as patch:
        install(clock, patch, site)
        site.publish()
    site.store.close()
    return clock.count


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done-untold"])
@pytest.mark.parametrize("published", [7, 250])
def test_every_crash_point(published, after, tmp_path, paper):
    template = tmp_path / "template"
    number, waiting = prepared(template, paper, published)
    writes = count_writes(opened(template, tmp_path / "count", paper, number))
    assert writes > 20
    for at in range(1, writes + 1):
        site = opened(template, tmp_path / str(at), paper, number)
        with pytest.MonkeyPatch.context() as patch:
            install(Clock(at, after), patch, site)
            with pytest.raises(Crash):
                site.publish()
        before = verify.verify_log(site.folder, paper.VKEYS).size
        assert before in (published, published + 20)
        again = site.reopen()
        later = again.fill(2)
        again.publish(9)
        report = verify.verify_log(again.folder, paper.VKEYS)
        assert (report.size, report.ahead) == (published + 22, ())
        indexes = [again.log.covered(leaf.unref(one)) for one in waiting + later]
        assert indexes == list(range(published, published + 22))
        again.store.close()
