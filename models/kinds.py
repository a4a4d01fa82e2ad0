"""What a manifest must say of an output, by its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from models.boxes import FORMATS
from models.fault import Fault
from models.findings import VOLUME
from models.outputs import VOLUME_UNITS
from models.package import MANIFEST, Package

__all__ = ["check"]

_LABELLED: Final = frozenset({"segmentation", "classification", "multilabel", "detection"})
_SCORED: Final = frozenset({"classification", "multilabel", "detection"})
_LAYERS: Final = 32
Dims = Mapping[str, Sequence[int | None]]


def _labels(output: Mapping[str, Any], key: str, channels: int | None) -> Iterator[Fault]:
    kind = output["kind"]
    if kind in _LABELLED and not output.get("labels"):
        yield Fault(MANIFEST, f"{key}.labels", "is missing", "Name what the indices mean.")
    indices = [label["index"] for label in output.get("labels", [])]
    if len(set(indices)) != len(indices):
        yield Fault(MANIFEST, f"{key}.labels", "an index stands twice", "Number labels once.")
    if kind == "segmentation" and 0 in indices and not output.get("overlapping"):
        yield Fault(
            MANIFEST, f"{key}.labels", "index 0 is the background and never a segment",
            "Leave it out, or count from 1.", warning=True,
        )  # fmt: skip
    by_channel = output.get("decode") == "argmax" or output.get("overlapping")
    if by_channel and channels and max(indices, default=0) >= channels:
        yield Fault(MANIFEST, f"{key}.labels", "an index lies beyond the channels", "Count from 0.")


def _measured(output: Mapping[str, Any], key: str) -> Iterator[Fault]:
    kind = output["kind"]
    for rule in output.get("measurements", []):
        unit, what = rule["unit"]["value"], (rule["what"]["value"], rule["what"]["scheme"])
        known = what == (VOLUME.value, VOLUME.scheme) and unit in VOLUME_UNITS
        if kind == "segmentation" and not known:
            yield Fault(
                MANIFEST, f"{key}.measurements", "of a mask only volumes (mm3, mL, L) are measured",
                "Compute it in the graph, as an output of kind measurement.",
            )  # fmt: skip
    if kind in ("regression", "measurement") and not output.get("measurements"):
        yield Fault(MANIFEST, f"{key}.measurements", "is missing", "Name each number and its unit.")


def _thresholds(output: Mapping[str, Any], key: str) -> Iterator[Fault]:
    points = output.get("operating_points", [])
    names = [point["name"] for point in points]
    if len(set(names)) != len(names):
        yield Fault(MANIFEST, f"{key}.operating_points", "a name stands twice", "Rename one.")
    chosen = sum(1 for point in points if point.get("default"))
    if chosen > 1 or (len(points) > 1 and not chosen):
        yield Fault(
            MANIFEST, f"{key}.operating_points",
            f"{chosen or 'none'} of {len(points)} are the default; the first of them is used",
            'Give one "default": true.', warning=not chosen,
        )  # fmt: skip
    given = [p["threshold"] for p in points]
    given += [x["threshold"] for x in (output, *output.get("labels", [])) if "threshold" in x]
    if output["kind"] in _SCORED and any(not 0 <= value <= 1 for value in given):
        yield Fault(
            MANIFEST, f"{key}.threshold", "lies outside 0..1, where the scores are",
            "Name the activation that makes scores of the numbers, and thresholds of scores.",
        )  # fmt: skip


def _triage(output: Mapping[str, Any], key: str) -> Iterator[Fault]:
    if "triage" not in output:
        return
    rule, where = output["triage"]["priority_when"], f"{key}.triage.priority_when"
    if output["kind"] not in _SCORED:
        yield Fault(
            MANIFEST, f"{key}.triage", f"has no score to look at in kind {output['kind']}",
            "Give it to a classification, multilabel or detection.",
        )  # fmt: skip
    if rule["label"] not in [label["label"] for label in output.get("labels", [])]:
        yield Fault(
            MANIFEST, f"{where}.label", f"{rule['label'][:64]!r} is none of the labels",
            "Write a label as it stands in labels.",
        )  # fmt: skip
    above = rule["above"]
    names = [point["name"] for point in output.get("operating_points", [])]
    if isinstance(above, str) and above not in names:
        yield Fault(
            MANIFEST, f"{where}.above", f"{above[:64]!r} is no operating point",
            "Write the name of one, or a number from 0 to 1.",
        )  # fmt: skip


def _overlapping(output: Mapping[str, Any], key: str) -> Iterator[Fault]:
    if not output.get("overlapping"):
        return
    if output["kind"] != "segmentation" or output.get("decode") != "threshold":
        yield Fault(
            MANIFEST, f"{key}.overlapping", "is for a segmentation read by threshold",
            'Write "decode": "threshold", or leave it out.',
        )  # fmt: skip
    if len(output.get("labels", [])) > _LAYERS:
        yield Fault(
            MANIFEST, f"{key}.labels", f"more than {_LAYERS} labels may not overlap",
            "Split the output, or let one label win (no `overlapping`).",
        )  # fmt: skip


def _boxes(
    output: Mapping[str, Any], key: str, declared: Mapping[str, Any], axes: int, dims: Dims
) -> Iterator[Fault]:
    rules = output.get("boxes")
    if rules is None:
        if output["kind"] == "detection":
            yield Fault(
                MANIFEST, f"{key}.boxes", "is missing",
                'Write the format of the boxes and where their scores are: {"format": "xyxy", '
                '"scores": "NAME"}.',
            )  # fmt: skip
        return
    if output["kind"] != "detection":
        yield Fault(MANIFEST, f"{key}.boxes", "is for kind detection only", "Remove it.")
    if rules["format"] not in FORMATS[axes]:
        yield Fault(
            MANIFEST, f"{key}.boxes.format",
            f"{rules['format']} has not the {axes} axes of the layout",
            f"Choose one of {', '.join(sorted(FORMATS[axes]))}.",
        )  # fmt: skip
    for word in ("scores", "classes"):
        if word in rules and rules[word] not in declared:
            yield Fault(
                MANIFEST, f"{key}.boxes.{word}",
                f"{rules[word][:64]} is not declared in network_data_format.outputs",
                "Declare the tensor.",
            )  # fmt: skip
    last = (dims.get(output["tensor"]) or [None])[-1]
    if last not in (None, 2 * axes):
        yield Fault(
            MANIFEST, f"{key}.boxes.format",
            f"a box has {2 * axes} numbers, the last axis of the graph's tensor {last}",
            "Let the graph give a box in the last axis.",
        )  # fmt: skip


def _map(output: Mapping[str, Any], key: str, channels: int | None) -> Iterator[Fault]:
    if output["kind"] != "map":
        return
    said = [k for k in ("labels", "measurements", "operating_points", "triage") if output.get(k)]
    if said:
        yield Fault(
            MANIFEST, f"{key}.{said[0]}", "a map is shown and says nothing by itself",
            "Remove it, or give findings as an output of their own.",
        )  # fmt: skip
    if channels not in (None, 1):
        yield Fault(MANIFEST, key, f"a map has one channel, not {channels}", "Give one channel.")


def check(package: Package, dims: Dims) -> list[Fault]:
    """Everything wrong with `deployment.outputs`; `dims` are the graph's, None where dynamic."""
    declared = package.manifest["network_data_format"]["outputs"]
    axes = 2 if package.deployment["layout"] == "NCHW" else 3
    faults: list[Fault] = []
    for output in package.outputs:
        name = str(output["tensor"])
        key = f"deployment.outputs.{name}"
        if name not in declared:
            faults.append(
                Fault(MANIFEST, key, "is not declared in network_data_format.outputs",
                      "Declare the tensor.")
            )  # fmt: skip
            continue
        if output["kind"] == "embedding":
            faults.append(
                Fault(MANIFEST, f"{key}.kind", "embedding is not supported yet",
                      "Use another kind.")
            )  # fmt: skip
        channels = declared[name].get("num_channels")
        faults += [
            *_labels(output, key, channels), *_measured(output, key), *_thresholds(output, key),
            *_overlapping(output, key), *_boxes(output, key, declared, axes, dims),
            *_map(output, key, channels), *_triage(output, key),
        ]  # fmt: skip
    kinds = [output["kind"] for output in package.outputs]
    for kind in ("segmentation", "map"):
        if kinds.count(kind) > 1:
            faults.append(
                Fault(MANIFEST, "deployment.outputs",
                      f"there are {kinds.count(kind)} of kind {kind}",
                      "Give one; a segmentation may have many labels.")
            )  # fmt: skip
    if {"segmentation", "detection"} <= set(kinds):
        faults.append(
            Fault(MANIFEST, "deployment.outputs", "boxes and a segmentation share no report",
                  "Give the boxes as labels of the mask, or make two packages.")
        )  # fmt: skip
    return faults
