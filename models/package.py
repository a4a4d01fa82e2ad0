"""A model package: a signed folder in the MONAI Bundle layout, read once and frozen.

    configs/metadata.json   the manifest (MONAI keys, and one object `deployment`)
    models/model.onnx       the graph; the model is known by its SHA-256
    selftest/test_data_set_N/{input,output}_K.pb
    docs/README.md, docs/license.txt, docs/model-card.xml (optional)

`load` proves that the folder is well formed; whether the graph keeps what the
manifest promises is `models.admission`, whose signature it bears is
`models.signature`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import jsonschema

from models.errors import PackageError
from models.findings import Code
from models.folder import file_digests, tree_digest

__all__ = ["MANIFEST", "MODEL", "Package", "load", "read_code"]

MANIFEST: Final = "configs/metadata.json"
MODEL: Final = "models/model.onnx"
_CARD: Final = "docs/model-card.xml"
_MAX_MANIFEST: Final = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Package:
    """One package, as it lay on disk when it was read.

    `model_digest` (SHA-256 of models/model.onnx) names the model,
    `package_digest` the whole folder; `files` maps each file to its SHA-256.
    Digests are lower-case hex. `manifest` is a copy: changing it changes nothing.
    """

    root: Path
    id: str
    name: str
    version: str
    vendor: str
    model_digest: str
    package_digest: str
    files: Mapping[str, str]
    manifest_text: str

    @property
    def manifest(self) -> dict[str, Any]:
        """The whole of configs/metadata.json."""
        value: dict[str, Any] = json.loads(self.manifest_text)
        return value

    @property
    def deployment(self) -> dict[str, Any]:
        """The `deployment` object."""
        value: dict[str, Any] = self.manifest["deployment"]
        return value

    @property
    def model_path(self) -> Path:
        """Where the graph lies; sessions load it by path only."""
        return self.root / MODEL

    @property
    def card(self) -> Path | None:
        """The CHAI Applied Model Card, where the package has one."""
        named = str(self.deployment.get("card", _CARD))
        return self.root / named if named in self.files else None

    @property
    def input(self) -> dict[str, Any]:
        """Which series the model reads, and what they must be like."""
        return dict(self.deployment["input"])

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What each output tensor means."""
        return list(self.deployment["outputs"])

    @property
    def preprocess(self) -> list[dict[str, Any]]:
        """The ordered steps from pixels to tensor."""
        return list(self.deployment["preprocess"])

    @property
    def results(self) -> dict[str, Any]:
        """Which kinds of result the vendor allows; absent means yes."""
        return dict(self.deployment.get("results", {}))

    @property
    def execution(self) -> dict[str, Any]:
        """Providers, threads, batch, time and memory the vendor asks for."""
        return dict(self.deployment.get("execution", {}))

    @property
    def regulatory(self) -> dict[str, Any]:
        """Status, clearances, device identity, population."""
        return dict(self.deployment["regulatory"])

    @property
    def algorithm(self) -> dict[str, Any]:
        """Family, name code and source, for TID 4019."""
        return dict(self.deployment.get("algorithm", {}))

    @property
    def intended_use(self) -> str:
        """The vendor's own sentence."""
        return str(self.manifest["intended_use"])

    @property
    def research_only(self) -> bool:
        """True unless the vendor holds a clearance: results are labelled with it."""
        return str(self.regulatory["status"]) != "cleared"

    def external_data(self) -> dict[str, str]:
        """Files beside the graph that it may read: path relative to models/ → SHA-256."""
        listed = self.deployment["identity"].get("external_data", [])
        return {str(item["path"]): str(item["sha256"]) for item in listed}


def read_code(value: Mapping[str, str] | None) -> Code | None:
    """Read a manifest's {value, scheme, meaning}."""
    return Code(value["value"], value["scheme"], value["meaning"]) if value else None


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = files("models").joinpath("package.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _key(path: Any) -> str:
    parts = [f"[{p}]" if isinstance(p, int) else f".{p}" for p in path]
    return "".join(parts).lstrip(".")


def _deepest(error: Any) -> Any:
    """Of a step that fits none of the operations, show what is wrong with the one it names."""
    if error.validator == "oneOf" and isinstance(error.instance, dict):
        named = error.instance.get("op")
        for inner in error.context:
            branch = error.schema["oneOf"][inner.schema_path[0]]
            if branch["properties"]["op"]["const"] == named:
                return inner
    return error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise PackageError(MANIFEST, "", "is too large", "A manifest has a few kilobytes.")
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except OSError as error:
        raise PackageError(
            MANIFEST, "", "is missing", "`radseal model new` writes a first one."
        ) from error
    except (ValueError, RecursionError) as error:
        raise PackageError(MANIFEST, "", f"is not JSON ({error})", "Correct the file.") from error
    faults = sorted(_validator().iter_errors(value), key=lambda e: [str(p) for p in e.path])
    if faults:
        fault = _deepest(faults[0])
        raise PackageError(
            MANIFEST,
            _key(fault.absolute_path),
            fault.message[:200],
            "models/package.schema.json says what may stand there.",
        )
    found: dict[str, Any] = value
    return found


def load(root: Path) -> Package:
    """Read the package at `root`; raises PackageError with file, key and fix.

    Checked here: layout, nothing executable, manifest against the JSON Schema,
    `identity.model_sha256` and every listed external file against the bytes.
    """
    root = root.resolve()
    digests = file_digests(root)
    manifest = _read_manifest(root / MANIFEST)
    if MODEL not in digests:
        raise PackageError(MODEL, "", "is missing", "Export the model as ONNX to this place.")
    identity = manifest["deployment"]["identity"]
    if identity["model_sha256"] != digests[MODEL]:
        raise PackageError(
            MANIFEST,
            "deployment.identity.model_sha256",
            "is not the digest of models/model.onnx",
            f"Write {digests[MODEL]}, if this is the graph you mean.",
        )
    for item in identity.get("external_data", []):
        if digests.get("models/" + item["path"]) != item["sha256"]:
            raise PackageError(
                MANIFEST,
                "deployment.identity.external_data",
                f"models/{item['path']} is missing or has another digest",
                "List every weight file that the graph reads with its SHA-256.",
            )
    return Package(
        root=root,
        id=identity["id"],
        name=identity["name"],
        version=manifest["version"],
        vendor=identity["vendor"],
        model_digest=digests[MODEL],
        package_digest=tree_digest(digests),
        files=MappingProxyType(digests),
        manifest_text=json.dumps(manifest, separators=(",", ":")),
    )
