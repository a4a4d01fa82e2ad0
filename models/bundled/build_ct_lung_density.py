"""Write the package ct_lung_density: a graph without learned weights, and its known answers.

    python -m models.bundled.build_ct_lung_density [FOLDER]

The same script writes the same bytes. The method, all of it inside the graph:

1. air is below -500 HU; tissue is above -300 HU.
2. On a coarse grid (blocks that are air, or tissue, throughout) a block lies
   inside the body when thick tissue is met on all four sides of it within its
   slice. That leaves out the air around the patient and a hollow table.
3. What is air and inside falls into connected pieces (26 neighbours; each
   block takes the largest number among its neighbours until nothing changes).
   Pieces of at least 15 % of the largest are lung; trachea, main bronchi,
   stomach and bowel are smaller.
4. The lungs grow back to full resolution, through air, not into other pieces.
5. Mean, share below -950 HU and 15th percentile are of the voxels under the mask.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["build", "graph"]

AIR_HU: Final = -500.0
TISSUE_HU: Final = -300.0
EMPHYSEMA_HU: Final = -950.0
COARSE: Final = 128  # blocks along rows and columns, at least
COARSE_Z: Final = 96
SHARE: Final = 0.15
STEPS: Final = 1024  # more than any path through lungs on the coarse grid needs


class Graph:
    """Nodes in order; a method for each kind keeps names out of the way."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[Any] = []
        self._prefix = prefix

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; return its name."""
        name = f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def const(self, value: Any, dtype: Any) -> str:
        """Add a constant."""
        tensor = numpy_helper.from_array(np.asarray(value, dtype=dtype))
        return self("Constant", value=tensor)

    def named(self, op: str, output: str, *inputs: str, **attributes: Any) -> None:
        """Add a node whose output is a graph's output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))


def _info(name: str, kind: int, shape: Sequence[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _pool(g: Graph, x: str, kernel: Sequence[int]) -> str:
    return g("MaxPool", x, kernel_shape=list(kernel), pads=[k // 2 for k in kernel] * 2)


def _dilate(g: Graph, x: str) -> str:
    for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
        x = _pool(g, x, kernel)
    return x


def _axis(g: Graph, shape: str, index: int) -> str:
    return g("Gather", shape, g.const([index], np.int64))


def _grid(g: Graph, hu: str) -> dict[str, str]:
    """Sizes as int64[1]: d, h, w; block sizes sz, s; coarse sizes cd, ch, cw; pads."""
    shape, one = g("Shape", hu), g.const([1], np.int64)
    d, h, w = (_axis(g, shape, i) for i in (2, 3, 4))
    s = g("Max", one, g("Div", g("Max", h, w), g.const([COARSE], np.int64)))
    sz = g("Max", one, g("Div", d, g.const([COARSE_Z], np.int64)))

    def up(size: str, block: str) -> str:
        return g("Div", g("Sub", g("Add", size, block), one), block)

    cd, ch, cw = up(d, sz), up(h, s), up(w, s)
    return {"d": d, "h": h, "w": w, "s": s, "sz": sz, "cd": cd, "ch": ch, "cw": cw, "one": one}


def _blocks(g: Graph, size: dict[str, str], flags: str) -> str:
    """1.0 where every voxel of a block holds: bool [1,1,D,H,W] to float [1,1,cd,ch,cw]."""
    zero = g.const([0, 0, 0, 0, 0], np.int64)
    ends = g(
        "Concat", g.const([0, 0], np.int64),
        g("Sub", g("Mul", size["cd"], size["sz"]), size["d"]),
        g("Sub", g("Mul", size["ch"], size["s"]), size["h"]),
        g("Sub", g("Mul", size["cw"], size["s"]), size["w"]), axis=0,
    )  # fmt: skip
    x = g("Cast", flags, to=TensorProto.FLOAT)
    x = g("Pad", x, g("Concat", zero, ends, axis=0), g.const(0, np.float32))
    six = g("Concat", size["cd"], size["sz"], size["ch"], size["s"], size["cw"], size["s"], axis=0)
    x = g("ReduceMin", g("Reshape", x, six), axes=[1, 3, 5], keepdims=0)
    one = size["one"]
    return g("Reshape", x, g("Concat", one, one, size["cd"], size["ch"], size["cw"], axis=0))


def _full(g: Graph, size: dict[str, str], coarse: str) -> str:
    """Spread blocks over their voxels: float [1,1,cd,ch,cw] to bool [1,1,D,H,W]."""
    one = size["one"]
    thin = g("Concat", size["cd"], one, size["ch"], one, size["cw"], one, axis=0)
    six = g("Concat", size["cd"], size["sz"], size["ch"], size["s"], size["cw"], size["s"], axis=0)
    x = g("Expand", g("Reshape", g("Cast", coarse, to=TensorProto.BOOL), thin), six)
    whole = g(
        "Concat", one, one, g("Mul", size["cd"], size["sz"]), g("Mul", size["ch"], size["s"]),
        g("Mul", size["cw"], size["s"]), axis=0,
    )  # fmt: skip
    x = g("Reshape", x, whole)
    ends = g("Concat", size["d"], size["h"], size["w"], axis=0)
    return g("Slice", x, g.const([0, 0, 0], np.int64), ends, g.const([2, 3, 4], np.int64))


def _inside(g: Graph, tissue: str) -> str:
    """1.0 for blocks with thick tissue on all four sides within the slice."""
    thick = g("Neg", _pool(g, g("Neg", tissue), (1, 3, 3)))
    zero = g.const(0, np.float32)
    sides = []
    for axis in (3, 4):
        for reverse in (0, 1):
            run = g("CumSum", thick, g.const(axis, np.int64), reverse=reverse)
            sides.append(g("Greater", run, zero))
    both = g("And", g("And", sides[0], sides[1]), g("And", sides[2], sides[3]))
    return g("Cast", both, to=TensorProto.FLOAT)


def _spread(g: Graph, cells: str, first: str) -> str:
    """Let the largest number of each connected piece fill it."""
    b = Graph("f")
    grown = b("Mul", _dilate(b, "l_in"), cells)
    moved = b("ReduceMax", b("Sub", grown, "l_in"), keepdims=0)
    b.named("Greater", "l_more", moved, b.const(0, np.float32))
    b.named("Identity", "l_out", grown)
    body = helper.make_graph(
        b.nodes, "spread",
        [_info("l_i", TensorProto.INT64, []), _info("l_c", TensorProto.BOOL, []),
         _info("l_in", TensorProto.FLOAT, None)],
        [_info("l_more", TensorProto.BOOL, []), _info("l_out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return g("Loop", g.const(STEPS, np.int64), g.const(True, np.bool_), first, body=body)


def _pieces(g: Graph, cells: str) -> tuple[str, str]:
    """Return (blocks of large pieces, blocks of the other pieces), float 0 or 1."""
    flat = g("Reshape", cells, g.const([-1], np.int64))
    count = g("Shape", flat)
    number = g("Squeeze", count, g.const([0], np.int64))
    ids = g("Range", g.const(1, np.int64), g("Add", number, g.const(1, np.int64)),
            g.const(1, np.int64))  # fmt: skip
    ids = g("Reshape", g("Cast", ids, to=TensorProto.FLOAT), g("Shape", cells))
    labels = _spread(g, cells, g("Mul", ids, cells))
    where = g("Cast", g("Reshape", labels, g.const([-1], np.int64)), to=TensorProto.INT64)
    zero = numpy_helper.from_array(np.array([0], np.float32))
    table = g("ConstantOfShape", g("Add", count, g.const([1], np.int64)), value=zero)
    sizes = g("ScatterElements", table, where, flat, axis=0, reduction="add")
    limit = g("Mul", g("ReduceMax", sizes, keepdims=1), g.const([SHARE], np.float32))
    kept = g("Cast", g("GreaterOrEqual", sizes, limit), to=TensorProto.FLOAT)
    large = g("Mul", g("Reshape", g("Gather", kept, where), g("Shape", cells)), cells)
    return large, g("Sub", cells, large)


def _grow(g: Graph, size: dict[str, str], seed: str, allowed: str) -> str:
    """Grow bool `seed` within bool `allowed` by a block and one voxel."""
    b = Graph("w")
    wide = b("Cast", _dilate(b, "g_in"), to=TensorProto.BOOL)
    b.named("Cast", "g_out", b("And", wide, allowed), to=TensorProto.UINT8)
    b.named("Identity", "g_more", "g_c")
    body = helper.make_graph(
        b.nodes, "grow",
        [_info("g_i", TensorProto.INT64, []), _info("g_c", TensorProto.BOOL, []),
         _info("g_in", TensorProto.UINT8, None)],
        [_info("g_more", TensorProto.BOOL, []), _info("g_out", TensorProto.UINT8, None)],
    )  # fmt: skip
    steps = g("Squeeze", g("Add", g("Max", size["s"], size["sz"]), size["one"]),
              g.const([0], np.int64))  # fmt: skip
    start = g("Cast", seed, to=TensorProto.UINT8)
    return g("Loop", steps, g.const(True, np.bool_), start, body=body)


def _percentile(g: Graph, values: str, count: str, share: float) -> str:
    """Find by bisection the least whole HU not exceeded by at least this share of values."""
    rank = g("Mul", g("Sub", count, g.const([1], np.float64)), g.const([share], np.float64))
    rank = g("Add", g("Floor", rank), g.const([1], np.float64))
    b = Graph("p")
    middle = b("Floor", b("Mul", b("Add", "p_low", "p_high"), b.const([0.5], np.float32)))
    below = b("Cast", b("LessOrEqual", values, middle), to=TensorProto.DOUBLE)
    enough = b("GreaterOrEqual", b("ReduceSum", below, keepdims=1), rank)
    b.named("Where", "p_low_out", enough, "p_low", middle)
    b.named("Where", "p_high_out", enough, middle, "p_high")
    b.named("Identity", "p_more", "p_c")
    floats = [_info(n, TensorProto.FLOAT, [1]) for n in
              ("p_low", "p_high", "p_low_out", "p_high_out")]  # fmt: skip
    body = helper.make_graph(
        b.nodes, "percentile",
        [_info("p_i", TensorProto.INT64, []), _info("p_c", TensorProto.BOOL, []), *floats[:2]],
        [_info("p_more", TensorProto.BOOL, []), *floats[2:]],
    )  # fmt: skip
    name = g("Loop", g.const(12, np.int64), g.const(True, np.bool_),
             g.const([-3585], np.float32), g.const([AIR_HU], np.float32), body=body)  # fmt: skip
    g.nodes[-1].output.append("p15")
    return g("Identity", "p15") if name else ""


def _statistics(g: Graph, hu: str, mask: str) -> None:
    """Numbers of the voxels under the mask; of an empty mask they mean nothing."""
    line = g.const([-1], np.int64)
    inside = g("Reshape", g("Cast", mask, to=TensorProto.BOOL), line)
    values = g("Compress", g("Reshape", hu, line), inside, axis=0)
    count = g("Cast", g("Max", g("Shape", values), g.const([1], np.int64)), to=TensorProto.DOUBLE)
    total = g("ReduceSum", g("Cast", values, to=TensorProto.DOUBLE), keepdims=1)
    g.named("Cast", "mean_hu", g("Div", total, count), to=TensorProto.FLOAT)
    low = g("Cast", g("Less", values, g.const(EMPHYSEMA_HU, np.float32)), to=TensorProto.DOUBLE)
    share = g("Div", g("ReduceSum", low, keepdims=1), count)
    g.named("Cast", "laa950_percent", g("Mul", share, g.const([100], np.float64)),
            to=TensorProto.FLOAT)  # fmt: skip
    g.named("Identity", "perc15_hu", _percentile(g, values, count, 0.15))


def graph() -> Any:
    """Return the model: hu float32 [1,1,slices,rows,columns] → mask uint8 and three numbers."""
    g = Graph("n")
    size = _grid(g, "hu")
    air = g("Less", "hu", g.const(AIR_HU, np.float32))
    tissue = g("Greater", "hu", g.const(TISSUE_HU, np.float32))
    cells = g("Mul", _blocks(g, size, air), _inside(g, _blocks(g, size, tissue)))
    large, other = _pieces(g, cells)
    allowed = g("And", air, g("Not", _full(g, size, other)))
    mask = _grow(g, size, _full(g, size, large), allowed)
    g.named("Identity", "mask", mask)
    _statistics(g, "hu", mask)
    shape = [1, 1, "slices", "rows", "columns"]
    numbers = [_info(n, TensorProto.FLOAT, [1]) for n in
               ("mean_hu", "laa950_percent", "perc15_hu")]  # fmt: skip
    whole = helper.make_graph(
        g.nodes, "ct_lung_density", [_info("hu", TensorProto.FLOAT, shape)],
        [_info("mask", TensorProto.UINT8, shape), *numbers],
    )  # fmt: skip
    model = helper.make_model(
        whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="radseal"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _test_volume(seed: int) -> Any:
    """Make a small chest of boxes: body, two lungs with dark holes and a vessel, trachea, table."""
    random = np.random.default_rng(seed)
    hu = np.full((16, 40, 48), -1000.0, np.float32)
    hu[:, 4:32, 4:44] = 40
    for left in (8, 27):
        hu[2:14, 8:28, left : left + 13] = -860
        hu[4:8, 12:16, left + 2 : left + 6] = -985
        hu[:, 20, left + 6] = 40
    hu[6:, 10:13, 23:25] = -1000
    hu[:, 34, 2:46] = 100
    hu[:, 38, 2:46] = 100
    hu = hu + np.rint(random.normal(0, 8, hu.shape)).astype(np.float32)
    return hu[None, None].astype(np.float32)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def build(folder: Path) -> None:
    """Write the whole package below `folder`, self-test included."""
    from models.bundled.ct_lung_density_manifest import LICENSE, README, manifest
    from models.runtime import open_session

    data = graph().SerializeToString(deterministic=True)
    _write(folder / "models/model.onnx", data)
    text = json.dumps(manifest(hashlib.sha256(data).hexdigest()), indent=2) + "\n"
    _write(folder / "configs/metadata.json", text.encode())
    _write(folder / "docs/README.md", README.encode())
    _write(folder / "docs/license.txt", LICENSE.encode())
    session = open_session(
        folder / "models/model.onnx", providers=["CPUExecutionProvider"], threads=1, volume=True
    )
    for seed in (0, 1):
        hu = _test_volume(seed)
        sets = folder / f"selftest/test_data_set_{seed}"
        _write(sets / "input_0.pb", numpy_helper.from_array(hu, "hu").SerializeToString())
        found = session.run({"hu": hu}, list(session.outputs))
        for place, (name, value) in enumerate(found.items()):
            tensor = numpy_helper.from_array(value, name)
            _write(sets / f"output_{place}.pb", tensor.SerializeToString())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "ct_lung_density"
    build(target)
    from models.package import load

    print(load(target).package_digest)
