"""A structured report as plain text, for the terminal and the study page."""

from __future__ import annotations

from pydicom.dataset import Dataset

__all__ = ["as_text"]

_QUIET = {"121049", "121005", "121012", "112040", "121232", "111028"}
"""Items that a person does not read: language, observer type, UIDs, the image library."""

_SYMBOLS = {"1": "", "[hnsf'U]": "HU"}


def _meaning(item: Dataset, keyword: str) -> str:
    sequence = item.get(keyword)
    return str(sequence[0].get("CodeMeaning", "")) if sequence else ""


def _name_code(item: Dataset) -> str:
    sequence = item.get("ConceptNameCodeSequence")
    return str(sequence[0].get("CodeValue", "")) if sequence else ""


def _number(item: Dataset) -> str:
    measured = item.get("MeasuredValueSequence")
    if not measured:
        reason = _meaning(item, "NumericValueQualifierCodeSequence")
        return f"no value{f' ({reason})' if reason else ''}"
    unit = measured[0].get("MeasurementUnitsCodeSequence")
    symbol = str(unit[0].get("CodeValue", "")) if unit else ""
    value = f"{float(measured[0].NumericValue):.6g}"
    return f"{value} {_SYMBOLS.get(symbol, symbol)}".strip()


def _reference(item: Dataset) -> str:
    reference = item.get("ReferencedSOPSequence")
    if not reference:
        return ""
    parts = [f"instance …{str(reference[0].ReferencedSOPInstanceUID)[-12:]}"]
    for keyword, word in (
        ("ReferencedSegmentNumber", "segment"),
        ("ReferencedFrameNumber", "frame"),
    ):
        if keyword in reference[0]:
            parts.append(f"{word} {reference[0][keyword].value}")
    return ", ".join(parts)


def _place(item: Dataset) -> str:
    points = [float(v) for v in item.get("GraphicData", []) or []]
    xs, ys = points[0::2], points[1::2]
    box = ""
    if xs and ys:
        box = f" columns {min(xs):g}–{max(xs):g}, rows {min(ys):g}–{max(ys):g}"
    images = [_reference(child) for child in item.get("ContentSequence", [])]
    return f"{str(item.get('GraphicType', '')).lower()}{box} on {'; '.join(images)}"


def _value(item: Dataset) -> str:
    kind = item.get("ValueType", "")
    if kind == "CODE":
        return _meaning(item, "ConceptCodeSequence")
    if kind == "NUM":
        return _number(item)
    if kind in {"IMAGE", "COMPOSITE", "WAVEFORM"}:
        return _reference(item)
    if kind in {"SCOORD", "SCOORD3D"}:
        return _place(item)
    plain = {
        "TEXT": "TextValue",
        "UIDREF": "UID",
        "DATETIME": "DateTime",
        "DATE": "Date",
        "TIME": "Time",
        "PNAME": "PersonName",
    }
    return str(item.get(plain.get(str(kind), ""), "") or "")


def _lines(item: Dataset, depth: int, lines: list[str]) -> None:
    if _name_code(item) in _QUIET:
        return
    name = _meaning(item, "ConceptNameCodeSequence") or "Image"
    indent = "  " * depth
    value = _value(item)
    lines.append(f"{indent}{name}: {value}" if value else f"{indent}{name}")
    if item.get("ValueType") in {"SCOORD", "SCOORD3D"}:
        return
    for child in item.get("ContentSequence", []) or []:
        _lines(child, depth + 1, lines)


def as_text(sr: Dataset) -> str:
    """Return the report as indented lines, title first. Works on any SR; names no patient."""
    flags = [str(sr.get(k, "")) for k in ("CompletionFlag", "PreliminaryFlag", "VerificationFlag")]
    title = _meaning(sr, "ConceptNameCodeSequence") or "Structured report"
    lines = [f"{title} ({', '.join(f.lower() for f in flags if f)})"]
    if sr.get("CompletionFlagDescription"):
        lines.append(f"  {sr.CompletionFlagDescription}")
    for child in sr.get("ContentSequence", []) or []:
        _lines(child, 1, lines)
    return "\n".join(lines) + "\n"
