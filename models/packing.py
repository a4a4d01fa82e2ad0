"""A vendor's bench: start a package from a graph, and look at one as hard as the site will.

Everything that opens the graph happens in a child (`models.sandbox`); here are files only.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from models import monai, package, sandbox, skeleton
from models.errors import PackageError, RunFailed
from models.fault import Fault
from models.folder import file_digest
from models.package import MANIFEST, MODEL, Package
from models.sandbox import Limits
from models.unzip import Bounds, unzip

__all__ = ["examine", "open_places", "start", "take", "write"]

_SET: Final = "selftest/test_data_set_0"
_SCHEMA: Final = "package.schema.json"
_DOCS: Final = ("docs/README.md", "docs/license.txt", "docs/model-card.xml")
_TAKEN: Final = frozenset({".json", ".onnx", ".data", ".bin", ".md", ".txt", ".xml", ".weight"})
_MAX_JSON: Final = 4 * 1024**2


def start(folder: Path, *, id: str, vendor: str, kind: str, onnx: Path | None) -> list[str]:
    """Write a first package into a new folder; returns what was done, in sentences.

    With `onnx` its graph fills the manifest and a self-test is recorded. Raises PackageError
    for a folder that is not empty or files that cannot be taken, RunFailed for a graph that
    cannot be read; nothing is written then.
    """
    if onnx is None:
        write(folder, skeleton.manifest(id=id, vendor=vendor, kind=kind))
        return [f"{MANIFEST} is written; put the graph at {MODEL}"]
    limits = Limits()
    folder, onnx = folder.absolute(), onnx.absolute()  # a child works in another folder
    if not onnx.is_file():
        raise PackageError(onnx.name, "", "is no file", "Name the ONNX file of your model.")
    graph = sandbox.describe(onnx, limits)
    beside = _beside(onnx, [str(name) for name in graph["external"]])
    manifest = skeleton.manifest(
        id=id, vendor=vendor, kind=kind, graph=graph, model_sha256=file_digest(onnx),
        external=[{"path": name, "sha256": file_digest(path), "size": path.stat().st_size}
                  for name, path in beside.items()],
    )  # fmt: skip
    write(folder, manifest)
    for name, path in {"model.onnx": onnx, **beside}.items():
        target = folder / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return [f"{MANIFEST} is written from the graph: {_shapes(graph)}", _record(folder, graph)]


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest with its schema beside it, for editors, into a new or empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(folder.name, "", "is there and not empty", "Name a new folder.")
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    schema = files("models").joinpath(_SCHEMA).read_text(encoding="utf-8")
    (folder / "configs" / _SCHEMA).write_text(schema, encoding="utf-8")


def _beside(onnx: Path, names: list[str]) -> dict[str, Path]:
    """Find the weight files that a graph reads; only plain files in its own folder."""
    found: dict[str, Path] = {}
    for name in names:
        path = onnx.parent / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts and name
        if not inside or path.is_symlink() or not path.is_file():
            raise PackageError(
                onnx.name, "external_data", f"reads weights from {name[:64]!r}, which is no file "
                "beside it", "Export again, with the weights in the same folder.",
            )  # fmt: skip
        found[name] = path
    return found


def _shapes(graph: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{side[:-1]} {name} {t[0]}{['?' if d is None else d for d in t[1]]}".replace("'", "")
        for side in ("inputs", "outputs")
        for name, t in graph[side].items()
        if t is not None
    )


def _record(folder: Path, graph: Mapping[str, Any]) -> str:
    kinds = {
        name: "unit" if str(t[0]).startswith("float") else "byte"
        for name, t in graph["inputs"].items()
        if t is not None
    }
    target = folder / _SET
    target.mkdir(parents=True)
    try:
        shape = sandbox.record(folder / MODEL, target, kinds, Limits(memory_mb=4096, timeout_s=120))
    except RunFailed as failed:
        for left in (target, target.parent):
            if not any(left.iterdir()):
                left.rmdir()
        return (
            f"no self-test: {failed.text}; write {_SET}/input_0.pb and output_0.pb "
            "(serialized TensorProto) yourself"
        )
    return (
        f"{_SET} is recorded from a generated input of shape {shape}; "
        "a real image tells more, record one before you ship"
    )


def take(bundle: Path, folder: Path, *, id: str, vendor: str) -> list[str]:
    """Make a package of a MONAI bundle, a folder or a ZIP, that carries an ONNX model.

    Returns what was done and what of the bundle is left out, in sentences. Raises
    PackageError for a bundle that cannot be taken, RunFailed for its graph.
    """
    with tempfile.TemporaryDirectory(prefix="radseal-") as place:
        root = _opened(bundle, Path(place))
        metadata = _json(root / MANIFEST)
        if metadata is None:
            raise PackageError(MANIFEST, "", "is missing", "Name a MONAI bundle, folder or ZIP.")
        onnx = _graph(root)
        told = start(folder, id=id, vendor=vendor, kind=monai.kind_of(metadata), onnx=onnx)
        first = _json(folder / MANIFEST) or {}
        found = monai.mapped(metadata, _json(root / "configs/inference.json"), first)
        text = json.dumps(found.manifest, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for name in _DOCS:
            if (root / name).is_file() and not (root / name).is_symlink():
                (folder / "docs").mkdir(exist_ok=True)
                shutil.copyfile(root / name, folder / name)
    return [*told, *(f"left: {words}" for words in found.left)]


def _opened(bundle: Path, place: Path) -> Path:
    """Give the bundle's folder: as it lies there, or out of its archive."""
    if bundle.is_dir():
        return bundle
    if not bundle.is_file():
        raise PackageError(bundle.name, "", "is not there", "Name a MONAI bundle, folder or ZIP.")
    unzip(
        bundle,
        lambda path: place.joinpath(*path) if Path(path[-1]).suffix.lower() in _TAKEN else None,
        Bounds(),
    )
    inner = [p for p in place.iterdir() if p.is_dir()]
    alone = len(inner) == 1 and not (place / "configs").exists()
    return inner[0] if alone else place


def _json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object of the bundle; None where there is no such file."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_JSON:
            raise PackageError(path.name, "", "is too large", "A configuration has few kilobytes.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(path.name, "", "is not JSON", "Correct the file.") from error
    if not isinstance(value, dict):
        raise PackageError(path.name, "", "is no JSON object", "Correct the file.")
    return value


def _graph(root: Path) -> Path:
    """Find the bundle's ONNX file: models/model.onnx, else the only one there."""
    folder = root / "models"
    found = [p for p in sorted(folder.glob("*.onnx")) if not p.is_symlink()]
    named = [p for p in found if p.name == "model.onnx"]
    if named or len(found) == 1:
        return (named or found)[0]
    text = f"holds {len(found)} ONNX models" if found else "holds no ONNX model"
    raise PackageError(
        "models", "", text,
        "Export it: python -m monai.bundle onnx_export, to models/model.onnx of the bundle.",
    )  # fmt: skip


def open_places(folder: Path) -> list[Fault]:
    """Give every place of a package's manifest that a person must still fill in."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(MANIFEST, "", "cannot be read", "Correct the file.") from error
    return package.unfilled(value)


def examine(folder: Path, limits: Limits) -> tuple[Package | None, list[Fault]]:
    """Look at everything in a package: folder, manifest, digests, graph, tensors, rules.

    The package is None where the manifest cannot be read. Raises RunFailed where the graph
    cannot be looked at in a child.
    """
    found, faults = package.survey(folder)
    if found is not None:
        return found, sandbox.admit(found, limits)
    if (folder / MODEL).is_file() and not (folder / MODEL).is_symlink():
        faults = [*faults, *sandbox.look(folder.resolve(), limits)]
    return None, faults
