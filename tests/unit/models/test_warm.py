"""A warm child: it serves run after run, keeps nothing of any, and its death is only an error."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import cell, line, sandbox, shared, warm
from models.errors import RunFailed
from models.package import Package, load
from models.sandbox import Limits, Outcome

LIMITS = Limits(memory_mb=1024, timeout_s=30, threads=1)
STORED = (np.arange(3 * 8 * 8, dtype=np.uint16).reshape(3, 8, 8) * 10) + 500
BRIGHT = int((STORED.astype(int) - 1024 > 100).sum())


@pytest.fixture(autouse=True)
def warmth() -> Iterator[None]:
    yield
    warm.keep([])
    warm._kept = None


@pytest.fixture
def package(make_package: Callable[..., Path]) -> Package:
    return load(make_package())


@pytest.fixture
def study(
    package: Package, make_series: Callable[..., list[Path]], tmp_path: Path
) -> Callable[..., Outcome]:
    """Run the package over one study, as often as asked."""
    paths, number = make_series(STORED), iter(range(100))

    def run(which: Package = package) -> Outcome:
        work = tmp_path / f"work{next(number)}"
        return sandbox.run(package=which, roles={"image": paths}, work=work, limits=LIMITS)

    return run


def the_graph(package: Package) -> warm.Graph:
    found = warm.graph(package, LIMITS)
    assert found is not None
    return found


def _process(graph: warm.Graph) -> cell.Process:
    with graph._turn:
        assert graph._process is not None
        return graph._process


def ready(package: Package) -> tuple[warm.Graph, cell.Process]:
    """Keep the package warm and wait until its child is."""
    sandbox.keep_warm([package], LIMITS)
    graph, until = the_graph(package), time.monotonic() + 30
    while graph._process is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return graph, _process(graph)


def test_one_child_serves_run_after_run(package: Package, study: Callable[..., Outcome]) -> None:
    own = study()
    graph, process = ready(package)
    for _ in range(2):
        outcome = study()
        assert outcome.findings == own.findings
        assert outcome.findings.segments[0].voxels == BRIGHT
        assert outcome.runtime["process"] == "warm"
        assert _process(graph).pid == process.pid
    cpu, life = resource.prlimit(process.pid, resource.RLIMIT_CPU)
    assert 30 < cpu < 60  # of this run, and of all runs together
    assert life == warm.RUNS * LIMITS.cpu_s()
    assert resource.prlimit(process.pid, resource.RLIMIT_AS) == (2048 * 2**20, 2048 * 2**20)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{process.pid}/status").read_text()
    assert own.runtime == {**outcome.runtime, "process": "own"}
    assert outcome.runtime["threads"] == 1
    assert outcome.runtime["optimisation"] == "all"


def test_a_model_that_leaves_routing_takes_its_child_along(package: Package) -> None:
    graph, process = ready(package)
    sandbox.keep_warm([package], LIMITS)
    assert process.poll() is None
    sandbox.keep_warm([], LIMITS)
    assert process.returncode is not None
    assert warm.graph(package, LIMITS) is None
    graph.warm_up()  # a start that came too late
    assert graph._process is None


@pytest.mark.fault
def test_a_child_that_died_between_two_runs_is_replaced(
    package: Package, study: Callable[..., Outcome]
) -> None:
    graph, process = ready(package)
    os.killpg(process.pid, signal.SIGKILL)
    assert study().runtime["process"] == "warm"
    assert _process(graph).pid != process.pid


def test_a_child_ends_by_itself_when_nobody_asks(
    package: Package, study: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "IDLE_S", 0.1)
    _, process = ready(package)
    assert process.wait(10) == 0
    monkeypatch.undo()
    assert study().runtime["process"] == "warm"


def test_a_child_that_grew_is_replaced(
    package: Package, study: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, process = ready(package)
    monkeypatch.setattr(warm, "_memory", lambda _process, _key: LIMITS.memory_mb + 1)
    assert study().runtime["process"] == "warm"
    assert process.returncode is not None
    assert graph._process is None


@pytest.mark.fault
def test_a_run_whose_child_died_is_tried_once_more_alone_and_the_model_rests(
    package: Package, study: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, process = ready(package)
    answer = warm.Graph._answer

    def dying(self: warm.Graph, process: cell.Process, *rest: Any) -> warm.Ran:
        os.killpg(process.pid, signal.SIGKILL)
        process.line, other = line.pair()
        other.close()
        return answer(self, process, *rest)

    monkeypatch.setattr(warm.Graph, "_answer", dying)
    outcome = study()
    assert outcome.runtime["process"] == "own"
    assert outcome.findings.segments[0].voxels == BRIGHT
    assert process.returncode == -signal.SIGKILL
    monkeypatch.undo()
    graph._rests_until = time.monotonic() + 60
    assert study().runtime["process"] == "own"
    assert graph._process is None
    graph._rests_until = 0.0
    assert study().runtime["process"] == "warm"
    assert graph._deaths == 0


@pytest.mark.fault
def test_two_deaths_on_one_input_are_the_end(
    package: Package, study: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, process = ready(package)
    born: list[cell.Process] = []
    start, tell = cell.start, line.Line.tell

    def starting(threads: int, **options: Any) -> cell.Process:
        born.append(start(threads, **options))
        return born[-1]

    def telling(self: line.Line, words: Any, *rest: Any, **more: Any) -> None:
        if "feeds" in words:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise warm.Lost(died=True)
        if "alone" in words:
            os.killpg(born[0].pid, signal.SIGSEGV)
        tell(self, words, *rest, **more)

    monkeypatch.setattr(cell, "start", starting)
    monkeypatch.setattr(line.Line, "tell", telling)
    with pytest.raises(RunFailed, match=r"died twice on this input.*not tried again") as failed:
        study()
    assert failed.value.code == "crashed"
    assert len(born) == 1


def test_a_run_that_fails_ends_the_child(
    make_package: Callable[..., Path], study: Callable[..., Outcome]
) -> None:
    shape = numpy_helper.from_array(np.array([1, 1, 1, -1], np.int64))
    nodes = [
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
        helper.make_node("Cast", ["y"], ["mask"], to=TensorProto.UINT8),
    ]
    sizes = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, sizes)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bad = load(make_package(model=model, name="bad"))
    _, process = ready(bad)
    with pytest.raises(RunFailed) as failed:
        study(bad)
    assert failed.value.code == "bad_output"
    assert process.returncode is not None


def _residue(pid: int, needle: bytes) -> int:
    """Count a pattern in all of a process's readable memory."""
    found = 0
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb") as mem:
        for row in maps:
            low, high, rights = re.match(r"(\w+)-(\w+) (\S+)", row).groups()  # type: ignore[union-attr]
            if "r" in rights and not row.rstrip().endswith(("[vvar]", "[vsyscall]")):
                with contextlib.suppress(OSError):
                    mem.seek(int(low, 16))
                    found += mem.read(int(high, 16) - int(low, 16)).count(needle)
    return found


@pytest.mark.fault
@pytest.mark.parametrize("side", [16, 200, 600])
def test_nothing_of_a_patient_stays_for_the_next(
    make_package: Callable[..., Path], side: int
) -> None:
    """A graph that copies its input around; afterwards its memory holds not one pixel of it."""
    sizes = ["n", 1, "h", "w"]
    floats = {"network_data_format": {"outputs": {"mask": {"dtype": "float32"}}}}
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2]),
         helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
         helper.make_node("Relu", ["b"], ["mask"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, sizes)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    package = load(make_package(model=model, change=floats))
    served, process = ready(package)
    secret = np.full((1, 1, side, side), 12345.678, np.float32)
    file, rows = shared.put({"x": secret})
    ran = served.run(file, served.checked(file, rows), time.monotonic() + 30)
    os.close(file)
    assert np.array_equal(shared.view(ran.file, ran.table)["mask"], secret)
    assert process.poll() is None
    until = time.monotonic() + 5
    while _residue(process.pid, secret[0, 0, 0, :4].tobytes()):
        assert time.monotonic() < until, "pixels of the last run are still in the child"
        time.sleep(0.05)
    assert _residue(os.getpid(), secret[0, 0, 0, :4].tobytes()), "the search would find it"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda rows: rows.clear(), "handed over"),
        (lambda rows: rows.append(rows[0]), "the manifest names"),
        (lambda rows: rows[0].__setitem__(0, "y"), "the manifest names"),
        (lambda rows: rows[0].__setitem__(0, ["x"]), "no known type"),
        (lambda rows: rows[0].__setitem__(1, "object"), "no known type"),
        (lambda rows: rows[0].__setitem__(1, "float64"), "the manifest names"),
        (lambda rows: rows[0].__setitem__(2, [2, 10**9]), "inside its file"),
        (lambda rows: rows[0].__setitem__(2, [2, 10**30]), "possible shape"),
        (lambda rows: rows[0].__setitem__(2, [0, 10**30]), "possible shape"),
        (lambda rows: rows[0].__setitem__(2, [-2, -3]), "possible shape"),
        (lambda rows: rows[0].__setitem__(2, [True, 3]), "possible shape"),
        (lambda rows: rows[0].__setitem__(2, [1] * 9), "no shape"),
        (lambda rows: rows[0].__setitem__(3, -64), "inside its file"),
        (lambda rows: rows[0].__setitem__(3, 4), "inside its file"),
        (lambda rows: rows[0].__setitem__(3, 64), "inside its file"),
        (lambda rows: rows.__setitem__(0, "x"), "not described"),
    ],
)
def test_a_table_of_tensors_is_not_believed(spoil: Callable[[Any], Any], why: str) -> None:
    file, rows = shared.put({"x": np.ones((2, 3), np.float32)})
    try:
        assert shared.check(file, rows, {"x": "float32"}, 1024) == [("x", "float32", (2, 3), 0)]
        spoil(rows)
        with pytest.raises(ValueError, match=why):
            shared.check(file, rows, {"x": "float32"}, 1024)
    finally:
        os.close(file)


def test_a_file_that_can_still_change_or_is_too_large_is_refused(tmp_path: Path) -> None:
    file, rows = shared.put({"x": np.ones((2, 3), np.float32)})
    with pytest.raises(ValueError, match="larger"):
        shared.check(file, rows, {"x": "float32"}, 63)
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)
    os.close(file)
    (tmp_path / "plain").write_bytes(bytes(64))
    for made in (os.open(tmp_path / "plain", os.O_RDWR), os.memfd_create("open")):
        os.truncate(made, 64)
        with pytest.raises(ValueError, match="changed"):
            shared.check(made, rows, {"x": "float32"}, 1024)
        os.close(made)
    with pytest.raises(ValueError, match="handed over"):
        shared.check(None, rows, {"x": "float32"}, 1024)


HOSTILE = """
import sys, socket, os, json, numpy as np
sys.path.append(sys.argv[1])
from models import line, shared
l = line.Line(socket.socket(fileno=0))
l.hear(); l.tell({"ready": True}); l.hear(); l.tell({"begun": True})
f, rows = shared.put({"mask": np.ones((1, 1, 2, 2), np.uint8)})
"""


@pytest.mark.fault
@pytest.mark.parametrize(
    ("does", "code", "why"),
    [
        ("l.tell({'outputs': rows, 'runtime': {}}, os.memfd_create('x'))", "bad_output", "changed"),
        ("l.tell({'outputs': 5, 'runtime': {}}, f)", "bad_output", "handed over"),
        ("l.tell({'outputs': rows, 'runtime': {'a': 'b' * 9999}}, f)", "bad_output", "not said"),
        ("l.tell({'outputs': rows, 'runtime': []}, f)", "bad_output", "not said"),
        ("l.tell({'failed': {'code': 'DROP TABLE', 'text': 'x'}})", "bad_output", "be read"),
        (
            "l.tell({'failed': {'code': 'memory', 'text': 'x' * 9999}})",
            "memory",
            "^memory: x{300}$",
        ),
        ("l._end.sendall(b'[1]\\n')", "bad_output", "be read"),
        ("l._end.sendall(b'[' * 3000000)", "bad_output", "be read"),
        ("import time; time.sleep(60)", "timeout", "no answer within 30 seconds"),
    ],
)
def test_a_warm_child_that_turned_hostile(
    package: Package, monkeypatch: pytest.MonkeyPatch, does: str, code: str, why: str
) -> None:
    monkeypatch.setattr(cell, "BOOT", HOSTILE + does)
    graph = warm.Graph(package, LIMITS)
    file, rows = shared.put({"x": np.ones((1, 1, 2, 2), np.float32)})
    try:
        with pytest.raises(RunFailed, match=why) as failed:
            graph.run(file, graph.checked(file, rows), time.monotonic() + 2)
    finally:
        os.close(file)
    assert failed.value.code == code
    assert graph._process is None


@pytest.mark.fault
@pytest.mark.parametrize(
    "more", ["", "l.tell({}); l.tell({'outputs': rows, 'runtime': {}}, f)"], ids=["one", "two"]
)
def test_an_answer_too_many_is_not_the_next_study_s(
    package: Package, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    says = "l.tell({'outputs': rows, 'runtime': {}}, f)\n"
    again = "l.hear(); l.tell({'begun': True}); l.tell({'outputs': rows, 'runtime': {}}, f)\n"
    monkeypatch.setattr(cell, "BOOT", HOSTILE + says + more + "\n" + again)
    graph = warm.Graph(package, LIMITS)
    file, rows = shared.put({"x": np.ones((1, 1, 2, 2), np.float32)})
    try:
        os.close(graph.run(file, graph.checked(file, rows), time.monotonic() + 20).file)
        assert graph._process is not None
        until = time.monotonic() + 10
        while more and graph._process.line.quiet():
            assert time.monotonic() < until
        if not more:
            os.close(graph.run(file, graph.checked(file, rows), time.monotonic() + 20).file)
            return
        with pytest.raises(warm.Lost) as lost:
            graph.run(file, graph.checked(file, rows), time.monotonic() + 20)
    finally:
        os.close(file)
        graph.leave()
    assert lost.value.died
    assert graph._process is None


def test_which_models_stay_warm(make_package: Callable[..., Path]) -> None:
    flat = load(make_package())
    assert warm.stays(flat, LIMITS)
    assert not warm.stays(flat, replace(LIMITS, memory_mb=warm.BIG_MB + 1))
    for shape, stays in ((["*", "*", "*"], False), ([8, 8, 8], True)):
        change = {
            "network_data_format": {"inputs": {"x": {"spatial_shape": shape}}},
            "deployment": {"layout": "NCDHW"},
        }
        assert warm.stays(load(make_package(change=change)), LIMITS) is stays


def test_a_model_rests_longer_after_each_death() -> None:
    assert [warm.pause(n) for n in (0, 1, 2, 3, 9, 10, 10**6)] == [0, 1, 2, 4, 256, 300, 300]


def test_a_child_that_took_all_the_time_to_start_is_a_timeout_and_no_fault_of_ours(
    package: Package,
) -> None:
    """A slow start eats the run's time; what is left may be less than nothing."""
    graph, _ = ready(package)
    file, table = shared.put({"x": np.zeros((1, 1, 8, 8), np.float32)})
    with pytest.raises(RunFailed) as failed:
        graph.run(file, table, time.monotonic() - 1)
    os.close(file)
    assert failed.value.code == "timeout"


def test_a_study_s_child_that_never_reads_the_answer_holds_up_nobody(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_SOON", 0.2)
    ours, end = line.pair()
    theirs = line.Line(end)
    file, table = shared.put({"x": np.zeros((1, 1, 8, 8), np.float32)})
    theirs.tell({"feeds": table}, file)
    os.close(file)

    class Talks:
        checked = warm.Graph(package, LIMITS).checked

        def run(self, *_: object) -> object:
            raise RunFailed("bad_output", "x" * 10_000_000)

    with pytest.raises(TimeoutError):
        sandbox._mediate(ours, Talks(), time.monotonic() + 5)  # type: ignore[arg-type]
    ours.close()
    theirs.close()
