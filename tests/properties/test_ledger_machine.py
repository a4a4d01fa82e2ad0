"""A log under any appends, retries, checkpoints and restarts is the list it should be."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger import leaf, merkle, verify

_PATH = Path(__file__).resolve().parents[1] / "paper_log.py"
if "paper_log" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("paper_log", _PATH)
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["paper_log"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["paper_log"])
paper = sys.modules["paper_log"]


class LogMachine(RuleBasedStateMachine):
    """The model is a list of leaf hashes and how many of them are published."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.site = paper.Site(self.folder)
        self.model = [self.site.store.select()[0].leaf_hash]
        self.published = 0
        self.later = 0

    def teardown(self):
        self.site.store.close()
        shutil.rmtree(self.folder)

    @rule(count=st.integers(1, 130))
    def append(self, count):
        self.model += [leaf.unref(one) for one in self.site.fill(count)]

    @precondition(lambda self: len(self.model) > 1)
    @rule(data=st.data())
    def retry(self, data):
        number = data.draw(st.integers(1, len(self.model) - 1))
        again = paper.made(10**9, "config.changed", {"digest": "f" * 64}, idem=f"key/{number}")
        assert self.site.log.append(f"key/{number}", again) == self.model[number]

    @rule()
    def publish(self):
        self.later += 1
        assert self.site.publish(self.later) == len(self.model) - self.published
        self.published = len(self.model)

    @rule()
    def restart(self):
        self.site = self.site.reopen()

    @rule(lose=st.booleans())
    def checkpoint_lags(self, lose):
        path = self.site.folder / "checkpoint"
        if lose and path.exists():
            path.unlink()
            self.publish()

    @invariant()
    def the_log_is_the_model(self):
        if not self.published:
            assert self.site.log.size() == 0
            return
        point = self.site.log.checkpoint()
        assert (point.size, point.root) == (
            self.published, merkle.root(self.model[: self.published]),
        )  # fmt: skip
        last = self.published - 1
        assert self.site.log.covered(self.model[last]) == last
        proof = verify.verify_proof(self.site.log.proof(self.model[last // 2]), paper.VKEYS)
        assert proof.index == last // 2
        if len(self.model) > self.published:
            assert self.site.log.covered(self.model[-1]) is None

    @precondition(lambda self: self.published)
    @rule()
    def a_stranger_verifies(self):
        report = verify.verify_log(self.site.folder, paper.VKEYS)
        assert (report.size, report.ahead) == (self.published, ())


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
