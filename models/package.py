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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import jsonschema

from models import folder
from models.errors import PackageError
from models.fault import Fault
from models.findings import Code
from models.folder import tree_digest

__all__ = [
    "MANIFEST",
    "MODEL",
    "TODO",
    "Package",
    "is_id",
    "load",
    "read_code",
    "step_fault",
    "survey",
    "unfilled",
]

MANIFEST: Final = "configs/metadata.json"
MODEL: Final = "models/model.onnx"
TODO: Final = "TODO:"
"""How a skeleton marks what only a person knows; a package that holds one is not admitted."""
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
    def providers(self) -> list[str]:
        """Execution providers in the order that the vendor asks for; the CPU where none is said."""
        return list(self.execution.get("providers", ["CPUExecutionProvider"]))

    @property
    def tensors(self) -> list[str]:
        """Every tensor of the graph that the outputs read, each once."""
        named = [str(output["tensor"]) for output in self.outputs]
        for output in self.outputs:
            rules = output.get("boxes", {})
            named += [str(rules[key]) for key in ("scores", "classes") if key in rules]
        return list(dict.fromkeys(named))

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


def is_id(text: str) -> bool:
    """Whether a text may be a package's `deployment.identity.id`."""
    whole: Any = _validator().schema
    identity = whole["properties"]["deployment"]["properties"]["identity"]
    return jsonschema.Draft202012Validator(identity["properties"]["id"]).is_valid(text)


def step_fault(step: Mapping[str, Any]) -> str | None:
    """Say why a step cannot stand in `deployment.preprocess`; None if it can."""
    whole: Any = _validator().schema
    rule = whole["properties"]["deployment"]["properties"]["preprocess"]["items"]
    for error in jsonschema.Draft202012Validator(rule).iter_errors(step):
        return str(_deepest(error).message)[:160]
    return None


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


def _parsed(path: Path) -> Any | Fault:
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            return Fault(MANIFEST, "", "is too large", "A manifest has a few kilobytes.")
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except OSError:
        return Fault(MANIFEST, "", "is missing", "`radseal model new` writes a first one.")
    except (ValueError, RecursionError) as error:
        return Fault(MANIFEST, "", f"is not JSON ({error})", "Correct the file.")


def _shape(value: Any) -> tuple[list[Fault], bool]:
    """Hold a manifest against the schema: (every error, whether it can be read all the same).

    A place that is still to be filled in says so instead of failing the schema; where all
    errors are such texts, the rest can be read.
    """
    errors = sorted(_validator().iter_errors(value), key=lambda e: [str(p) for p in e.path])
    if not errors:
        return [], True
    todo = unfilled(value)
    keys = {fault.key for fault in todo}
    wrong = [e for e in errors if not _marked(e, keys)]
    shown = [
        Fault(MANIFEST, _key(error.absolute_path), error.message[:200], _fix(error))
        for error in map(_deepest, wrong)
    ]
    return [*todo, *shown], not wrong


def _marked(error: Any, keys: set[str]) -> bool:
    """Whether a schema error is only about a text that begins with TODO."""
    key = _key(error.absolute_path)
    if error.validator == "oneOf":  # a step whose operation is still to be named
        return f"{key}.op" in keys
    return error.validator in {"pattern", "enum", "const", "maxLength"} and key in keys


def _fix(error: Any) -> str:
    """Say what may stand at a place of the manifest, in the schema's own words."""
    said = error.schema.get("description") if isinstance(error.schema, dict) else None
    where = "models/package.schema.json says what may stand there."
    return f"It is: {said} {where}" if said else where


def unfilled(value: Any) -> list[Fault]:
    """Give every place of a manifest where a person must still write something (TODO: ...)."""
    found: list[Fault] = []
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(value, ())]
    while stack:
        item, path = stack.pop()
        if isinstance(item, Mapping):
            stack.extend((inner, (*path, str(key))) for key, inner in item.items())
        elif isinstance(item, list):
            stack.extend((inner, (*path, place)) for place, inner in enumerate(item))
        elif isinstance(item, str) and item.startswith(TODO):
            asked = item.removeprefix(TODO)[:200].strip()
            found.append(
                Fault(MANIFEST, _key(path), "is not filled in yet", f"Write {asked or 'it'}.")
            )
    return sorted(found, key=lambda fault: fault.key)


def _contents(identity: Mapping[str, Any], digests: Mapping[str, str]) -> Iterator[Fault]:
    """Hold the digests that a manifest names against the bytes."""
    said = identity["model_sha256"]
    if MODEL in digests and said != digests[MODEL] and not said.startswith(TODO):
        yield Fault(
            MANIFEST, "deployment.identity.model_sha256", "is not the digest of models/model.onnx",
            f"Write {digests[MODEL]}, if this is the graph you mean.",
        )  # fmt: skip
    for item in identity.get("external_data", []):
        if digests.get("models/" + item["path"]) != item["sha256"]:
            yield Fault(
                MANIFEST, "deployment.identity.external_data",
                f"models/{item['path'][:64]} is missing or has another digest",
                "List every weight file that the graph reads with its SHA-256.",
            )  # fmt: skip


def survey(root: Path) -> tuple[Package | None, list[Fault]]:
    """Read the package at `root` with everything that is wrong with folder and manifest.

    The package is None where its manifest does not fit the schema, or there is no graph.
    `load` is what anybody but a checker wants.
    """
    root = root.resolve()
    digests, faults = folder.survey(root)
    if not root.is_dir():
        return None, faults
    manifest = _parsed(root / MANIFEST)
    if isinstance(manifest, Fault):
        return None, [*faults, manifest]
    wrong, readable = _shape(manifest)
    faults.extend(wrong)
    if MODEL not in digests:
        faults.append(Fault(MODEL, "", "is missing", "Export the model as ONNX to this place."))
    if not readable:
        return None, faults
    identity = manifest["deployment"]["identity"]
    faults.extend(_contents(identity, digests))
    if MODEL not in digests:
        return None, faults
    found = Package(
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
    return found, faults


def load(root: Path) -> Package:
    """Read the package at `root`; raises PackageError with file, key and fix of the first fault.

    Checked here: layout, nothing executable, manifest against the JSON Schema,
    `identity.model_sha256` and every listed external file against the bytes.
    """
    found, faults = survey(root)
    for fault in faults:
        raise PackageError(fault.file, fault.key, fault.text, fault.fix)
    if found is None:
        raise PackageError(MANIFEST, "", "cannot be read", "`radseal model new` writes one.")
    return found
