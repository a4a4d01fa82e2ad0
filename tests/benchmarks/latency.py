"""Measure: last image → SR stored in the PACS, against bare decode + onnxruntime.

    python tests/benchmarks/latency.py [--rounds 5]

Completeness is declared by an HTTP call right after the last image's Success, so that no
timer is measured. `bare` reads the same files, decodes them and runs the same ONNX file in
one process, imports left out, session loading counted. The SEG's encoding is named apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import house  # noqa: E402
import servers  # noqa: E402

from bridge.demo import pacs, phantom  # noqa: E402
from bridge.report.identity import derived_uid  # noqa: E402
from models import bundled  # noqa: E402

BARE = """
import sys, time, glob
import numpy as np, onnxruntime, pydicom
began = time.monotonic()
slices = [pydicom.dcmread(p) for p in sys.argv[2:]]
slices.sort(key=lambda d: float(d.ImagePositionPatient[2]))
hu = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])
decoded = time.monotonic()
options = onnxruntime.SessionOptions()
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape
tensor = hu.astype(np.float32)[None, None] if len(shape) == 5 else hu.astype(np.float32)[:, None]
session.run(None, {session.get_inputs()[0].name: tensor})
print(decoded - began, time.monotonic() - began)
"""


def _bare(files: list[Path]) -> float:
    model = bundled.folder("ct_lung_density") / "models" / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(model), *map(str, files)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[1])


class _Clocked(pacs.FakePACS):
    """A PACS that notes when each object came."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        super().__init__("BENCHPACS")

    def _keep(self, event: object) -> int:
        status = super()._keep(event)
        dataset = event.dataset  # type: ignore[attr-defined]
        self.at[f"{dataset.StudyInstanceUID}/{dataset.Modality}"] = time.monotonic()
        return status


def _round(number: int, served: house.House, receiver: _Clocked, token: str) -> tuple[float, ...]:
    def uid(*parts: str) -> str:
        return derived_uid("latency", str(number), str(time.time_ns()), *parts[:1], *parts[1:])

    names: dict[tuple[str, ...], str] = {}
    made = phantom.to_datasets(
        phantom.chest_ct(number), uid=lambda *p: names.setdefault(p, uid(*p)),
        now=datetime.now(UTC),
    )  # fmt: skip
    study = str(made[0].StudyInstanceUID)
    with servers.own_folder("latency") as folder:
        files = []
        for index, dataset in enumerate(made):
            files.append(folder / f"{index:03d}.dcm")
            dataset.save_as(files[-1], enforce_file_format=True)
        bare = _bare(files)
        served.send(files)
    last = time.monotonic()
    while served.story(study) is None or not served.idle():
        time.sleep(0.02)
    request = urllib.request.Request(
        f"http://{servers.HOST}:{served.http_port}/studies/{urllib.parse.quote(study)}/complete",
        method="POST", data=b"", headers={"Authorization": f"Bearer {token}"},
    )  # fmt: skip
    urllib.request.urlopen(request).read()
    servers.wait_until(lambda: f"{study}/SR" in receiver.at, seconds=120, what="the SR")
    whole = receiver.at[f"{study}/SR"] - last
    told = served.story(study) or {}
    at = {line["code"]: datetime.fromisoformat(line["at"]) for line in told["lines"]}
    ran = at["inference.completed"] - at["inference.started"]
    seg = next(line for line in told["lines"] if line["code"] == "result.composed")
    encoding = datetime.fromisoformat(seg["at"]) - at["inference.completed"]
    seconds = timedelta.total_seconds
    return whole, bare, whole - bare, seconds(ran), seconds(encoding)


def main() -> None:
    """Print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    receiver = _Clocked()
    destination = house.destination("pacs", receiver.ae_title, receiver.port)
    with house.served(destinations=[destination], quiet_seconds=600) as served:
        served.radseal("model", "approve", "org.radseal.ct-lung-density", "--by", "second")
        served.radseal("model", "activate", "org.radseal.ct-lung-density", "--by", "second")
        token = served.token("administrator")
        found = [_round(number + 1, served, receiver, token) for number in range(rounds)]
    receiver.close()
    names = ("last image to SR", "bare", "overhead", "run in its child", "SEG after the run")
    for one in found:
        print("  ".join(f"{name} {value:.2f} s" for name, value in zip(names, one, strict=True)))
    medians = [statistics.median(values) for values in zip(*found, strict=True)]
    print(json.dumps({n: round(v, 3) for n, v in zip(names, medians, strict=True)}))
    print(f"reach: overhead <= 1 s + 10 % of bare = {1 + 0.1 * medians[1]:.2f} s")


if __name__ == "__main__":
    main()
