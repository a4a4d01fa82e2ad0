"""What a child process does: seal an input, run a model, run its self-test, check its graph.

Each task takes plain JSON parameters and a `stage` callback and returns plain
JSON. Only `models.child` calls these; the parent's side is `models.sandbox`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset

from models import decode, shared, volume
from models.errors import RunFailed
from models.fault import Fault
from models.line import Line
from models.package import MODEL, Package, load, survey
from models.select import READ
from models.stored import in_stored_order

__all__ = ["TASKS", "input_digest", "load_libraries", "registered"]

Stage = Callable[[str], None]
Array = npt.NDArray[Any]
_DIGESTED: Final = sorted(
    (set(READ) - {"LossyImageCompression", "PhotometricInterpretation"})
    | {
        "HighBit", "ImagePositionPatient", "InstanceNumber", "PixelRepresentation",
        "RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth",
    }
)  # fmt: skip


def _plain(value: Any) -> Any:
    """Give an attribute's value the same form however a peer wrote it: numbers as numbers."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return [_plain(v) for v in value]
    try:
        return repr(float(value))
    except (TypeError, ValueError, OverflowError):
        return str(value).strip()


def _attributes(dataset: Dataset) -> dict[str, Any]:
    """Collect what rules, geometry and preprocessing read; never identity or encoding."""
    found: dict[str, Any] = {}
    for keyword in _DIGESTED:
        try:
            value = _plain(dataset.get(keyword))
        except (TypeError, ValueError, OverflowError, NotImplementedError):
            value = "unreadable"
        if value is not None:
            found[keyword] = value
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    found["PhotometricInterpretation"] = "RGB" if photometric.startswith("YBR") else photometric
    return found


def input_digest(instances: Sequence[tuple[str, str, Any]]) -> str:
    """SHA-256 over (SOPInstanceUID, pixel SHA-256, attributes) of each image, sorted by UID."""
    whole = hashlib.sha256(b"radseal input v1\n")
    for uid, pixels, attributes in sorted(instances, key=lambda item: (item[0], item[1])):
        line = json.dumps([uid, pixels, attributes], sort_keys=True, separators=(",", ":"))
        whole.update(line.encode() + b"\n")
    return whole.hexdigest()


def _placed(dataset: FileDataset, pixels: Array) -> list[Any]:
    """Geometry and scale frame by frame, for images that keep them in functional groups."""
    if "SharedFunctionalGroupsSequence" not in dataset:
        return []
    return [
        [s.position, s.orientation, s.spacing, s.slope, s.intercept]
        for s in volume.slices_of(dataset, pixels)
    ]


def _seal(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    stage("decode")
    folder = Path(params["cache"])
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[Any]] = []
    digested: list[tuple[str, str, Any]] = []
    decoders: dict[str, int] = {}
    index: dict[str, Any] = {}
    for number, name in enumerate(params["paths"]):
        path = Path(name)
        dataset = decode.read_header(path)
        pixels, decoder = decode.decode(dataset)
        uid, sha = str(dataset.get("SOPInstanceUID", "")), decode.pixel_sha256(pixels)
        attributes = {**_attributes(dataset), "frames": _placed(dataset, pixels)}
        digested.append((uid, sha, attributes))
        rows.append([uid, sha, int(pixels.shape[0])])
        decoders[decoder] = decoders.get(decoder, 0) + 1
        np.save(folder / f"{number}.npy", pixels, allow_pickle=False)
        info = path.stat()
        index[name] = [f"{number}.npy", sha, info.st_size, info.st_mtime_ns]
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return {"input_digest": input_digest(digested), "instances": rows, "decoders": decoders}


def _pixel_digest(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    stage("decode")
    dataset = decode.read_header(Path(params["path"]))
    if not decode.has_pixels(dataset):  # a report, a presentation state: nothing to differ in
        return {"sha256": hashlib.sha256(b"").hexdigest(), "decoder": "none"}
    pixels, decoder = decode.decode(dataset)
    return {"sha256": decode.pixel_sha256(pixels), "decoder": decoder}


def _raw_frames(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    stage("decode")
    data = decode.raw_frames(decode.read_header(Path(params["path"])))
    Path(params["frames"]).write_bytes(data)
    return {"bytes": len(data)}


def _cached(folder: str | None) -> Callable[[Path, FileDataset], Array]:
    """Pixels from a seal's cache where they are still those of the file, else decoded anew."""
    index: dict[str, Any] = {}
    if folder is not None:
        try:
            index = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            index = {}

    def pixels_of(path: Path, dataset: FileDataset) -> Array:
        row = index.get(str(path))
        info = path.stat()
        if row is not None and folder is not None and row[2:] == [info.st_size, info.st_mtime_ns]:
            try:
                pixels: Array = np.load(Path(folder) / row[0], allow_pickle=False)
            except (OSError, ValueError, EOFError):
                return decode.decode(dataset)[0]
            if decode.pixel_sha256(pixels) == row[1]:
                return pixels
        return decode.decode(dataset)[0]

    return pixels_of


def registered(params: dict[str, Any]) -> Package:
    """Load the package that the parent names, if it still is the one that was registered."""
    package = load(Path(params["package"]))
    if package.package_digest != params["package_digest"]:
        raise RunFailed("bad_model", "the package on disk is not the one that was registered")
    return package


def _save(path: Path, compress: bool, **arrays: Array) -> None:
    """Write an .npz and bring it and its folder to the disk."""
    with path.open("wb") as stream:
        save = np.savez_compressed if compress else np.savez
        save(stream, allow_pickle=False, **arrays)
        stream.flush()
        os.fsync(stream.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _infer(
    package: Package, feeds: dict[str, Array], threads: int, line: Line | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Have the parent's warm graph run, or run it here where the parent has none or lost it."""
    from models import infer, runtime

    if line is not None:
        file, rows = shared.put(feeds)
        line.tell({"feeds": rows}, file)
        os.close(file)
        told, file_of_outputs = line.hear()
        if "failed" in told:
            raise RunFailed(str(told["failed"]["code"]), str(told["failed"]["text"]))
        if file_of_outputs is not None:
            return shared.view(file_of_outputs, told["outputs"]), dict(told["runtime"])
    session = runtime.opened(package, threads, alone=True)
    tensors, facts = infer.through(package, session, feeds)
    return tensors, {**facts, "process": "own"}


def _run(params: dict[str, Any], stage: Stage, line: Line | None = None) -> dict[str, Any]:
    from models import infer, outputs, preview

    started = time.perf_counter()
    package = registered(params)
    stage("decode")
    pixels_of = _cached(params.get("cache"))
    stored = any(s["op"] == "Rescale" and s["to"] == "stored" for s in package.preprocess)
    volumes = {
        role: volume.load(
            [Path(p) for p in paths], package.input, rescale=not stored, pixels_of=pixels_of
        )
        for role, paths in params["roles"].items()
    }
    stage("prepare")
    first = volumes[next(iter(params["roles"]))]
    source, image, feeds = infer.prepare(package, volumes)
    stage("infer")
    elsewhere = line if params.get("warm") else None
    tensors, runtime = _infer(package, feeds, int(params["threads"]), elsewhere)
    stage("interpret")
    result = outputs.interpret(package, tensors, image, source, first, params["warnings"])
    stage("write")
    work = Path(params["work"])
    _save(work / "preview.npz", compress=False, **preview.pictures(package, first, result))
    result = in_stored_order(result, first)
    mask = None
    if result.mask is not None:
        mask = work / "mask.npz"
        _save(mask, compress=True, mask=result.mask)
    return {
        "findings": result.findings.to_json(),
        "mask": str(mask) if mask else None,
        "preview": str(work / "preview.npz"),
        "runtime": runtime,
        "seconds": time.perf_counter() - started,
    }


def _selftest(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    from models import selftest

    stage("infer")
    passed, text = selftest.run(registered(params), int(params["threads"]))
    return {"passed": passed, "text": text}


def _admit(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Hold a package against its graph; without one that can be read, the graph alone."""
    from models import admission, graph

    stage("check")
    found, faults = survey(Path(params["package"]))
    if found is not None and found.package_digest == params["package_digest"]:
        faults = list(dict.fromkeys([*faults, *admission.check(found)]))
    elif params["package_digest"] is not None:
        raise RunFailed("bad_model", "the package on disk is not the one that was registered")
    elif (Path(params["package"]) / MODEL).is_file():
        read = graph.read(Path(params["package"]) / MODEL)
        faults = [read] if isinstance(read, Fault) else graph.faults(read, {})
        faults = [f for f in faults if f.key != "external_data"]  # the manifest lists it
    return {"faults": [[f.file, f.key, f.text, f.fix, f.warning] for f in faults]}


def _describe(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Give what a graph says of itself, or the fault for which it cannot be read."""
    from models import graph

    stage("check")
    read = graph.read(Path(params["model"]))
    if isinstance(read, Fault):
        raise RunFailed("bad_model", f"{read.text}; {read.fix}")
    return graph.describe(read)


def _record(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Run a bare graph on a generated input and write both as a test data set."""
    from models import selftest

    stage("infer")
    shape = selftest.record(
        Path(params["model"]), Path(params["folder"]), int(params["threads"]), params["kinds"]
    )
    return {"shape": shape}


def _card(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    from models import card

    stage("check")
    path = Path(params["package"]) / params["card"]
    return {"lines": card.read(path.read_bytes(), params["card"])}


def load_libraries() -> None:
    """Load what a run needs, while there is nothing to do yet."""
    from models import infer, outputs, preview  # noqa: F401


TASKS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "seal": _seal,
    "pixel_digest": _pixel_digest,
    "raw_frames": _raw_frames,
    "run": _run,
    "selftest": _selftest,
    "admit": _admit,
    "describe": _describe,
    "record": _record,
    "card": _card,
}
"""Tasks by the name the parent asks for."""
