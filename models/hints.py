"""What an exporter wrote into the graph's metadata_props, against the manifest. Pure.

Hints only: the manifest rules, so a difference is a note and never stops admission.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from models.fault import Fault

__all__ = ["faults", "labels", "said"]

_MANIFEST: Final = "configs/metadata.json"
_LABELS: Final = ("labels", "names", "classes", "class_names", "label_names", "channel_def")
_PAIR: Final = re.compile(r"(\d{1,5})['\"]?\s*:\s*(?:'([^']{1,200})'|\"([^\"]{1,200})\")")
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "version": ("version",),
    "task": ("task",),
    "description": ("description",),
    "authors": ("authors",),
    "author": ("authors",),
    "copyright": ("copyright",),
    "license": ("deployment", "identity", "license"),
    "vendor": ("deployment", "identity", "vendor"),
}
_MOST: Final = 1000


def said(metadata: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Give what the graph says for keys of the manifest: path of the key → text."""
    found: dict[tuple[str, ...], str] = {}
    for key, value in metadata.items():
        place = _KEYS.get(key.strip().lower())
        text = value.strip()[:500]
        if place is not None and text:
            found.setdefault(place, text)
    return found


def labels(metadata: Mapping[str, str]) -> dict[int, str]:
    """Give index → label as exporters write it: a JSON list or object, {0: 'a'}, or a, b, c."""
    lowered = {key.strip().lower(): value for key, value in metadata.items()}
    for key in _LABELS:
        text = lowered.get(key, "").strip()
        if text:
            return _read(text)
    return {}


def _read(text: str) -> dict[int, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = {k: a or b for k, a, b in _PAIR.findall(text)} or re.split(r"[,\n;]", text)
    if isinstance(value, Mapping):
        pairs = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list):
        pairs = [(str(k), v) for k, v in enumerate(value)]
    else:
        return {}
    return {
        int(k): v.strip()[:64]
        for k, v in pairs[:_MOST]
        if re.fullmatch("[0-9]{1,5}", k) and isinstance(v, str) and v.strip()
    }


def faults(manifest: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterator[Fault]:
    """Note each difference between the graph's own words and the manifest's."""
    for place, text in said(metadata).items():
        value: Any = manifest
        for step in place:
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value.strip() != text:
            yield Fault(
                _MANIFEST, ".".join(place), f"differs from the graph's own metadata: {text[:80]!r}",
                "The manifest rules; correct whichever is out of date.", warning=True,
            )  # fmt: skip
    known = labels(metadata)
    outputs = manifest["deployment"]["outputs"]
    if not known or len(outputs) != 1:
        return
    for label in outputs[0].get("labels", []):
        index, name = label["index"], str(label["label"])
        if index in known and _folded(known[index]) != _folded(name):
            yield Fault(
                _MANIFEST, f"deployment.outputs.{outputs[0]['tensor']}.labels",
                f"index {index} is {name[:40]!r}, the graph's own metadata says "
                f"{known[index][:40]!r}", "Make sure that the order of the labels is right.",
                warning=True,
            )  # fmt: skip


def _folded(text: str) -> str:
    """Fold what only spelling changes: case, blanks, hyphens, underscores."""
    return re.sub(r"[\W_]+", "", text.casefold())
