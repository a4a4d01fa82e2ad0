"""The anatomy of the synthetic chest: shapes in millimetres painted into labels and HU.

``phantom.py`` says what is promised of the result; this module keeps the promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

OUTSIDE, BODY, RIGHT, LEFT, AIRWAY, BONE, EMPHYSEMA, VESSEL = range(8)
LABELS = {
    OUTSIDE: "outside",
    BODY: "body",
    RIGHT: "right lung",
    LEFT: "left lung",
    AIRWAY: "airway",
    BONE: "bone",
    EMPHYSEMA: "emphysema",
    VESSEL: "vessel",
}
LUNG = (RIGHT, LEFT, EMPHYSEMA)

_SIZE = 256
_PIXEL_MM = 1.45
_HEIGHT_MM = 270.0  # of the scanned region, whatever the number of slices
_NOISE_HU = 10.0
_AIMS = (
    (0.9, -0.5, 0.6),
    (0.9, 0.4, 0.7),
    (1.0, -0.4, -0.4),
    (0.8, 0.6, -0.8),
    (1.0, 0.0, 0.1),
    (0.6, 0.1, 1.2),
    (0.7, -0.8, 0.1),
    (0.6, 0.2, -1.2),
)

Floats = npt.NDArray[np.floating[Any]]
Point = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """Coordinates in mm that broadcast to [slice, row, col]; z counts from the lowest slice."""

    z: Floats
    y: Floats
    x: Floats
    spacing: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return (self.z.shape[0], self.y.shape[1], self.x.shape[2])

    @property
    def origin(self) -> tuple[float, float, float]:
        """LPS position (x, y, z) in mm of the first voxel's centre."""
        half = _PIXEL_MM * (_SIZE - 1) / 2
        return (-half, -half, -_HEIGHT_MM)

    def ellipse(self, x: Any, y: Any, a: Any, b: Any, power: float = 2.0) -> Floats:
        """Give the level function: below 1 inside the (super)ellipse round (x, y)."""
        out: Floats = np.abs((self.x - x) / a) ** power + np.abs((self.y - y) / b) ** power
        return out


def paint(seed: int, slices: int) -> tuple[npt.NDArray[np.int16], Labels, Grid]:
    """Return the stored HU, the label map and the grid of the chest that belongs to the seed."""
    random = np.random.default_rng(seed)
    grid = _grid(slices)
    labels = np.zeros(grid.shape, np.uint8)
    hu = np.full(grid.shape, -1000.0, np.float32)
    _body(grid, labels, hu)
    _lungs(grid, labels, hu)
    _airways(grid, labels, hu)
    _vessels(grid, labels, hu, random)
    _blur(labels, hu)
    _emphysema(labels, hu, random)
    hu += _NOISE_HU * _noise(grid.shape, random)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), labels, grid


def _grid(slices: int) -> Grid:
    step = _HEIGHT_MM / slices
    z = (np.arange(slices, dtype=np.float32) * step)[:, None, None]
    across = (np.arange(_SIZE, dtype=np.float32) - (_SIZE - 1) / 2) * np.float32(_PIXEL_MM)
    return Grid(z, across[None, :, None], across[None, None, :], (step, _PIXEL_MM, _PIXEL_MM))


def _body(grid: Grid, labels: Labels, hu: Floats) -> None:
    """Skin, fat, muscle, mediastinum and bones; the table below the patient."""
    waist = 1 - 0.05 * np.cos(grid.z / _HEIGHT_MM * np.pi)
    outer = grid.ellipse(0, 0, 168 * waist, 116 * waist, 2.3)
    body = np.broadcast_to(outer < 1, hu.shape)
    labels[body] = BODY
    hu[body] = 40  # skin
    _fill(hu, outer < 0.965, -100)  # fat
    chest = grid.ellipse(0, 0, 150 * waist, 103 * waist, 2.2)
    _fill(hu, chest < 1, 52)  # muscle
    _fill(hu, grid.ellipse(0, 2, 62, 74) < 1, -95)  # mediastinal fat
    _fill(hu, _heart(grid) < 1, 42)
    _fill(hu, (grid.ellipse(24, 52, 13, 13) < 1) & (grid.z < 185), 44)  # aorta
    _fill(hu, (grid.ellipse(2, 42, 7, 5) < 1), 30)  # oesophagus
    _fill(hu, (grid.ellipse(-22, -8, 10, 9) < 1) & (grid.z > 150), 43)  # cava
    liver = (chest < 0.93) & (grid.z < _diaphragm(grid) - 4)
    _fill(hu, liver, 58)
    _bones(grid, labels, hu, chest)
    table = np.abs(grid.y - (137 - (grid.x / 170) ** 2 * 9)) < 1.6
    hu[np.broadcast_to(table, hu.shape) & (labels == OUTSIDE)] = -250


def _fill(hu: Floats, where: npt.NDArray[np.bool_], value: float) -> None:
    hu[np.broadcast_to(where, hu.shape)] = value


def _heart(grid: Grid) -> Floats:
    height = ((grid.z - 98) / 62) ** 2
    out: Floats = grid.ellipse(20 - (grid.z - 98) * 0.2, -22, 58, 46, 2.2) + height
    return out


def _diaphragm(grid: Grid) -> Floats:
    """Give the height of the diaphragm: two domes, the right one higher, recesses behind."""
    right = 58 * np.exp(-(((grid.x + 65) / 48) ** 2) - ((grid.y + 12) / 55) ** 2)
    left = 46 * np.exp(-(((grid.x - 65) / 48) ** 2) - ((grid.y + 12) / 55) ** 2)
    out: Floats = 14 + right + left
    return out


def _bones(grid: Grid, labels: Labels, hu: Floats, chest: Floats) -> None:
    disc = np.mod(grid.z, 24) < 5
    vertebra = np.broadcast_to(grid.ellipse(0, 76, 19, 15), hu.shape)
    _bone(labels, hu, vertebra, np.where(disc, 90, 190), np.where(disc, 90, 520), 0.78)
    arch = np.broadcast_to(grid.ellipse(0, 96, 15, 12), hu.shape)
    _bone(labels, hu, np.where(disc, 9, arch), 300, 500, 0.8)
    spinous = np.maximum(np.abs(grid.x) / 4.0, np.abs(grid.y - 104) / 9.0)
    wings = np.maximum(np.abs(grid.x) / 32.0, np.abs(grid.y - 94) / 4.5)
    for part in (spinous, wings):
        _bone(labels, hu, np.where(disc, 9, part), 260, 480, 0.6)
    canal = np.broadcast_to(grid.ellipse(0, 95, 9, 8) < 1, hu.shape)
    labels[canal], hu[canal] = BODY, 28
    sternum = np.where((grid.z > 70) & (grid.z < 235), grid.ellipse(0, -92, 19, 7), 9)
    _bone(labels, hu, sternum, 140, 420, 0.6)
    behind = np.mod(grid.z - 0.5 * grid.y + 8, 27) - 6
    rim = (np.sqrt(chest) - 0.975) / 0.042
    ribs: Floats = rim**2 + (behind / 6) ** 2
    _bone(labels, hu, ribs, 210, 620, 0.4)


def _bone(labels: Labels, hu: Floats, level: Any, marrow: Any, cortex: Any, rim: float) -> None:
    level = np.broadcast_to(level, hu.shape)
    inside = np.nonzero((level < 1) & (labels != OUTSIDE))
    labels[inside] = BONE
    sides = [np.broadcast_to(side, hu.shape)[inside] for side in (marrow, cortex)]
    hu[inside] = np.where(level[inside] < rim, *sides)


def _lungs(grid: Grid, labels: Labels, hu: Floats) -> None:
    """Two lungs round the mediastinum, denser towards the back, where the blood is."""
    base, apex = 9.0, 252.0
    up = np.clip((grid.z - base) / (apex - base), 0, 1)
    width = np.sqrt(np.clip(1 - np.clip((up - 0.3) / 0.7, 0, 1) ** 2.6, 0, 1))
    width = np.where((grid.z > base) & (grid.z < apex) & (width > 0.2), width, 1e-3)
    free = (grid.z > _diaphragm(grid)) & (_heart(grid) > 1.12) & (labels == BODY)
    free &= grid.ellipse(0, 84, 36, 34) > 1  # spine and what lies beside it
    free &= grid.ellipse(24, 52, 16, 16) > 1  # aorta
    free &= grid.ellipse(0, 0, 30, 70, 2.5) > 1  # mediastinum
    gravity: Floats = -866 + 0.28 * grid.y + 0 * grid.x + 0 * grid.z
    for label, side, size in ((RIGHT, -1, 1.0), (LEFT, 1, 0.96)):
        ellipse = grid.ellipse(side * (68 - 10 * up), 0, 58 * size * width, 84 * width, 2.3)
        lung = (ellipse < 1) & free & (side * grid.x > 4)
        labels[lung] = label
        hu[lung] = gravity[lung]


def _airways(grid: Grid, labels: Labels, hu: Floats) -> None:
    """Trachea from the top slice to the carina, main and lobar bronchi with closed walls."""
    carina, right, left = _at(0, 18, 168), _at(-40, 16, 143), _at(46, 20, 138)
    tubes = [
        (_at(0, 12, 400), carina, 8.5),
        (carina, right, 6.5),
        (carina, left, 5.8),
        (right, _at(-66, 4, 160), 3.9),
        (right, _at(-70, 24, 112), 3.9),
        (left, _at(72, 2, 156), 3.7),
        (left, _at(70, 30, 108), 3.7),
    ]
    lumen = np.zeros(grid.shape, np.bool_)
    for start, end, radius in tubes:
        where, near = _tube(grid, start, end, radius)
        lumen[where] |= near < radius
    wall = np.zeros(grid.shape, np.bool_)
    box = ndimage.find_objects(lumen.astype(np.uint8))[0]
    box = tuple(slice(max(0, side.start - 3), side.stop + 3) for side in box)
    grown = ndimage.binary_dilation(lumen[box], np.ones((3, 3, 3), np.bool_))
    wall[box] = ndimage.binary_dilation(grown, np.ones((1, 3, 3), np.bool_))
    wall &= ~lumen
    labels[wall], hu[wall] = BODY, 30
    labels[lumen], hu[lumen] = AIRWAY, -995


def _vessels(grid: Grid, labels: Labels, hu: Floats, random: np.random.Generator) -> None:
    """Grow arteries from both hila: every branch forks until it is thinner than a voxel."""
    growing: list[tuple[Point, Point, float]] = []
    for side in (-1, 1):
        hilum = _at(side * 38, 10, 140)
        growing.extend((hilum, _at(side * x, y, z), 4.8) for x, y, z in _AIMS)
    while growing:
        start, direction, radius = growing.pop()
        direction = direction / np.linalg.norm(direction)
        end = start + direction * random.uniform(16, 26) * (0.5 + radius / 8)
        where, near = _tube(grid, start, end, radius)
        inside = (near < radius) & ((labels[where] == RIGHT) | (labels[where] == LEFT))
        labels[where][inside] = VESSEL
        hu[where][inside] = 42 if radius > 2 else -120
        if radius > 1.15:
            for scale in (0.82, 0.72):
                turned = direction + random.normal(0, 0.45, 3)
                growing.append((end, turned, radius * scale))


def _at(x: float, y: float, z: float) -> Point:
    return np.array((x, y, z), np.float64)


def _tube(
    grid: Grid, start: Point, end: Point, radius: float
) -> tuple[tuple[slice, slice, slice], Floats]:
    """Give the box round a line and the distance in mm of its voxels from the line."""
    boxes = []
    for axis, values in ((2, grid.z), (1, grid.y), (0, grid.x)):
        line = values.ravel()
        low = min(start[axis], end[axis]) - radius - 3
        high = max(start[axis], end[axis]) + radius + 3
        boxes.append(slice(*(int(i) for i in np.searchsorted(line, (low, high)))))
    where = (boxes[0], boxes[1], boxes[2])
    z, y, x = grid.z[where[0]], grid.y[:, where[1]], grid.x[:, :, where[2]]
    along = end - start
    length = float(along @ along)
    t = ((x - start[0]) * along[0] + (y - start[1]) * along[1] + (z - start[2]) * along[2]) / length
    t = np.clip(t, 0, 1)
    away = [p - start[i] - t * along[i] for i, p in enumerate((x, y, z))]
    out: Floats = np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2)
    return where, out


def _blur(labels: Labels, hu: Floats) -> None:
    """Smooth edges in the plane as a scanner does, each voxel staying on its side of -550 HU."""
    dark = (labels == OUTSIDE) | (labels == AIRWAY)
    lung = (labels == RIGHT) | (labels == LEFT)
    soft = ~(dark | lung)
    smooth = ndimage.gaussian_filter(hu, (0, 0.7, 0.7), truncate=3)
    np.copyto(hu, np.maximum(smooth, -400), where=soft)
    np.copyto(hu, np.minimum(smooth, -700), where=lung)
    np.copyto(hu, np.minimum(smooth, -800), where=labels == AIRWAY)


def _emphysema(labels: Labels, hu: Floats, random: np.random.Generator) -> None:
    """Turn the peaks of a smooth random field into emphysema, more of it towards the apices."""
    lung = (labels == RIGHT) | (labels == LEFT)
    coarse = tuple(-(-n // 4) for n in labels.shape)
    rough = ndimage.gaussian_filter(random.standard_normal(coarse, np.float32), (1.0, 0.9, 0.9))
    rough += rough.std() * np.linspace(-0.5, 0.5, coarse[0], dtype=np.float32)[:, None, None]
    z, y, x = (_between(few, many) for few, many in zip(coarse, labels.shape, strict=True))
    fine = (z @ rough.reshape(coarse[0], -1)).reshape(-1, *coarse[1:])
    fine = (y @ fine) @ x.T
    share = random.uniform(0.085, 0.115)
    sick = lung & (fine > np.quantile(fine[lung], 1 - share))
    labels[sick] = EMPHYSEMA
    hu[sick] = -990


def _between(few: int, many: int) -> Floats:
    """Give the matrix that interpolates ``few`` values linearly at ``many`` places."""
    places = np.linspace(0, few - 1, many)[:, None]
    out: Floats = np.maximum(0, 1 - np.abs(places - np.arange(few))).astype(np.float32)
    return out


def _noise(shape: tuple[int, int, int], random: np.random.Generator) -> Floats:
    """Give noise of standard deviation 1 that is correlated with its neighbours in the plane."""
    white = random.standard_normal((shape[0], shape[1] + 1, shape[2] + 1), np.float32)
    rows = white[:, 1:] + white[:, :-1]
    out: Floats = (rows[:, :, 1:] + rows[:, :, :-1]) / 2
    return out
