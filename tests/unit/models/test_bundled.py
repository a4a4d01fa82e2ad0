"""The package we ship: built bytes, pinned digest, and a second opinion by scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models import admission, bundled, sandbox
from models.bundled import build_ct_lung_density
from models.package import load
from models.runtime import open_session
from models.sandbox import Limits


def test_the_shipped_bytes_are_the_pinned_and_built_ones(tmp_path: Path) -> None:
    for name, digest in bundled.DIGESTS.items():
        assert load(bundled.folder(name)).package_digest == digest
    build_ct_lung_density.build(tmp_path)
    assert load(tmp_path).package_digest == bundled.DIGESTS["ct_lung_density"]
    with pytest.raises(KeyError):
        bundled.folder("../etc")


def test_admitted_and_repeats_itself() -> None:
    package = load(bundled.folder("ct_lung_density"))
    assert [f for f in admission.check(package) if not f.warning] == []
    assert package.research_only
    verdict = sandbox.selftest(package, Limits(memory_mb=2048, timeout_s=60))
    assert verdict.passed, verdict.text


def chest(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and the true lung mask: two lungs, a trachea, bowel gas, air around, a hollow table."""
    random = np.random.default_rng(seed)
    z, y, x = np.mgrid[0:48, 0:160, 0:170]
    hu = np.full(z.shape, -1000.0)
    hu[((x - 85) / 76) ** 2 + ((y - 75) / 62) ** 2 < 1] = 30
    lung = np.zeros(z.shape, bool)
    for center in (48, 122):
        lung |= ((x - center) / 27) ** 2 + ((y - 75) / 40) ** 2 + ((z - 20) / 18) ** 2 < 1
    holes = ndimage.gaussian_filter(random.normal(size=z.shape), 3)
    hu[lung] = np.where(holes[lung] > np.quantile(holes[lung], 0.9), -985, -860)
    vessel = (np.abs(y - 75) < 2) & (np.abs(z - 20) < 2)
    hu[vessel & lung] = 40
    hu[((x - 85) / 7) ** 2 + ((y - 62) / 7) ** 2 < 1] = -1000  # trachea, out of the top
    hu[((x - 60) / 9) ** 2 + ((y - 90) / 9) ** 2 + ((z - 45) / 4) ** 2 < 1] = -1000  # bowel
    table = (np.abs(y - 146) < 9) & (np.abs(x - 85) < 70)
    hu[table] = 80
    hu[(np.abs(y - 146) < 7) & (np.abs(x - 85) < 68)] = -950
    noisy = np.rint(hu + random.normal(0, 9, hu.shape)).astype(np.float32)
    return noisy, lung & ~vessel


@pytest.mark.parametrize("seed", [1, 2])
def test_lungs_and_numbers_on_a_known_chest(seed: int) -> None:
    hu, truth = chest(seed)
    session = open_session(
        bundled.folder("ct_lung_density") / "models/model.onnx",
        providers=["CPUExecutionProvider"], threads=1, volume=True,
    )  # fmt: skip
    found = session.run({"hu": hu[None, None]}, list(session.outputs))
    mask = found["mask"][0, 0].astype(bool)
    assert mask.sum() == pytest.approx(truth.sum(), rel=0.01)
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.99
    assert mask.any(axis=(1, 2))[40:].sum() == 0  # neither bowel nor trachea
    inside = hu[mask].astype(np.float64)
    assert found["mean_hu"][0] == pytest.approx(inside.mean(), abs=0.01)
    assert found["laa950_percent"][0] == pytest.approx(100 * (inside < -950).mean(), abs=1e-4)
    assert found["perc15_hu"][0] == np.percentile(inside, 15, method="inverted_cdf")


def test_no_lungs_is_an_empty_mask() -> None:
    session = open_session(
        bundled.folder("ct_lung_density") / "models/model.onnx",
        providers=["CPUExecutionProvider"], threads=1, volume=True,
    )  # fmt: skip
    for value in (-1000, 40):
        hu = np.full((1, 1, 40, 64, 64), value, np.float32)
        found = session.run({"hu": hu}, list(session.outputs))
        assert not found["mask"].any()
        assert np.isfinite(found["mean_hu"]).all()
