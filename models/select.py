"""Which series of a study a model wants, and in words why not. Pure.

Rules are MONAI Deploy's (`models.rules`); what `deployment.input` adds (SOP
classes, slice counts, body part, age, preference ...) is checked here from the
same attributes. Reasons name attributes, coded values and series numbers,
never descriptions, which may carry a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.package import Package
from models.rules import as_number, as_values, matches, plane, search

__all__ = ["READ", "Choice", "SeriesFacts", "StudyFacts", "Unwanted", "choose"]

READ: Final[tuple[str, ...]] = (
    "AcquisitionNumber", "AcquisitionType", "BitsAllocated", "BitsStored", "BodyPartExamined",
    "BurnedInAnnotation", "ContrastBolusAgent", "ContrastBolusRoute", "ConvolutionKernel",
    "CorrectedImage", "DiffusionBValue", "EchoNumbers", "EchoTime", "FlipAngle",
    "FrameOfReferenceUID", "GantryDetectorTilt", "ImageLaterality", "ImageOrientationPatient",
    "ImageType", "ImagerPixelSpacing", "InversionTime", "KVP", "Laterality",
    "LossyImageCompression", "MRAcquisitionType", "MagneticFieldStrength", "Manufacturer",
    "ManufacturerModelName", "Modality", "NumberOfFrames", "PatientPosition",
    "PhotometricInterpretation", "PixelSpacing",
    "PresentationIntentType", "ProtocolName", "QualityControlImage", "ReconstructionDiameter",
    "RepetitionTime", "RescaleType", "Rows", "Columns", "SOPClassUID", "SamplesPerPixel",
    "ScanOptions", "ScanningSequence", "SequenceName", "SequenceVariant", "SeriesDescription",
    "SeriesNumber", "SliceThickness", "SpacingBetweenSlices", "StudyDescription", "Units",
    "ViewPosition",
)  # fmt: skip
_FREE_TEXT: Final = frozenset({"SeriesDescription", "StudyDescription", "ProtocolName"})
_MAX_REASONS: Final = 4
_COUNTS: Final = 4  # place of the count among the checks of _why_not


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """A series as the index knows it: images held, their attributes, whether all are there.

    `attributes` maps a keyword of READ to its JSON value (text, number or list).
    `count` is the number of images; frames of a multi-frame image count each
    through `NumberOfFrames`.
    """

    series_instance_uid: str
    count: int
    attributes: Mapping[str, Any]
    complete: bool


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What rules may know of the patient; None where unknown or invalid."""

    age_years: float | None = None
    sex: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The series for each role. Not `settled`: more images could still change the choice."""

    roles: dict[str, str]
    warnings: tuple[str, ...] = ()
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Unwanted:
    """No route, and why. Not `settled`: more images could still make one."""

    reason: str
    settled: bool = True


def _slices(series: SeriesFacts) -> int:
    frames = as_number(series.attributes.get("NumberOfFrames"))
    return series.count * max(int(frames or 1), 1)


def _shown(keyword: str, value: Any) -> str:
    if keyword in _FREE_TEXT:
        return "does not match" if as_values(value) else "is empty"
    if keyword == "ImageOrientationPatient":
        return f"is {plane(value) or 'unknown'}"
    values = as_values(value)
    return "is absent" if not values else "is " + "\\".join(str(v)[:32] for v in values)[:80]


def _wanted(wanted: Any) -> str:
    if isinstance(wanted, list):
        if len(wanted) == 2 and as_number(wanted[0]) is not None:
            if isinstance(wanted[1], str):
                return f"{wanted[1]} {wanted[0]}"
            return f"{wanted[0]} to {wanted[1]}"
        return " and ".join(
            f"not {str(w)[1:]}" if str(w).startswith("!") else str(w) for w in wanted
        )
    return str(wanted)


def _selection(role: Mapping[str, Any], series: SeriesFacts, timeout: float) -> str | None:
    """Why no selection of this role takes the series; None when one does."""
    reasons: list[str] = []
    for selection in role["selections"]:
        for keyword, wanted in selection["conditions"].items():
            value = series.attributes.get(keyword)
            if not matches(keyword, wanted, value, timeout):
                reasons.append(f"{keyword} {_shown(keyword, value)}, wanted {_wanted(wanted)}")
                break
        else:
            return None
    return " or ".join(dict.fromkeys(reasons))


def _counts(rules: Mapping[str, Any], series: SeriesFacts) -> str | None:
    slices = _slices(series)
    least, most = rules.get("min_slices"), rules.get("max_slices")
    if least is not None and slices < least:
        return f"{slices} images, wanted at least {least}"
    if most is not None and slices > most:
        return f"{slices} images, wanted at most {most}"
    return None


def _listed(rules: Mapping[str, Any], attributes: Mapping[str, Any]) -> str | None:
    """Hold coded values against the lists of allowed ones."""
    checks = (
        ("sop_classes", ("SOPClassUID",), True),
        ("body_parts", ("BodyPartExamined",), bool(rules.get("body_part_required"))),
        ("laterality", ("ImageLaterality", "Laterality"), True),
        ("view_positions", ("ViewPosition",), True),
        ("photometric", ("PhotometricInterpretation",), True),
    )
    for key, keywords, required in checks:
        allowed = {str(item).casefold() for item in rules.get(key) or ()}
        values = [v for k in keywords for v in as_values(attributes.get(k))]
        if not allowed or (not values and not required):
            continue
        if not any(str(v).casefold() in allowed for v in values):
            shown = _shown(keywords[0], values)
            return f"{keywords[0]} {shown}, wanted {' or '.join(rules[key])}"
    return None


def _physics(rules: Mapping[str, Any], attributes: Mapping[str, Any]) -> str | None:
    bits = as_number(attributes.get("BitsStored"))
    if rules.get("min_bits") is not None and (bits is None or bits < rules["min_bits"]):
        shown = _shown("BitsStored", attributes.get("BitsStored"))
        return f"BitsStored {shown}, wanted at least {rules['min_bits']}"
    spacing = rules.get("pixel_spacing_mm")
    if spacing is not None:
        found = as_values(attributes.get("PixelSpacing")) or as_values(
            attributes.get("ImagerPixelSpacing")
        )
        numbers = [as_number(v) for v in found]
        if not numbers or not all(n is not None and spacing[0] <= n <= spacing[1] for n in numbers):
            return f"PixelSpacing {_shown('PixelSpacing', found)}, wanted {_wanted(spacing)} mm"
    return None


def _excluded(rules: Mapping[str, Any], role: Mapping[str, Any], series: SeriesFacts) -> str | None:
    attributes = series.attributes
    if rules.get("exclude_burned_in") and str(attributes.get("BurnedInAnnotation")) == "YES":
        return "BurnedInAnnotation is YES, wanted images without text in the pixels"
    if rules.get("exclude_derived"):
        kinds = [str(v).upper() for v in as_values(attributes.get("ImageType"))]
        if "DERIVED" in kinds:
            return "ImageType is DERIVED, wanted original images"
    asked = any("QualityControlImage" in s["conditions"] for s in role["selections"])
    if not asked and str(attributes.get("QualityControlImage")).upper() == "YES":
        return "QualityControlImage is YES, and the model does not ask for phantoms"
    return None


def _patient(rules: Mapping[str, Any], study: StudyFacts) -> tuple[str | None, list[str]]:
    """Return (why the patient does not fit, warnings)."""
    wanted = rules.get("patient") or {}
    warnings: list[str] = []
    low, high = wanted.get("min_age_years"), wanted.get("max_age_years")
    if low is not None or high is not None:
        if study.age_years is None:
            warnings.append("The patient's age is unknown; the model is meant for a range of ages.")
        elif low is not None and study.age_years < low:
            return f"the patient is younger than {low:g} years", []
        elif high is not None and study.age_years > high:
            return f"the patient is older than {high:g} years", []
    sex = wanted.get("sex")
    letters = {str(s)[0].upper() for s in ([sex] if isinstance(sex, str) else sex or ())}
    if letters and "A" not in letters:
        if study.sex not in {"M", "F", "O"}:
            warnings.append("The patient's sex is unknown; the model is meant for one sex.")
        elif study.sex not in letters:
            return "the patient's sex is not the one the model is meant for", []
    return None, warnings


def _why_not(
    rules: Mapping[str, Any], role: Mapping[str, Any], series: SeriesFacts, timeout: float
) -> tuple[int, str] | None:
    """How far a series came and what stopped it; None when the role can take it."""
    checks = (
        _selection(role, series, timeout),
        _listed(rules, series.attributes),
        _excluded(rules, role, series),
        _physics(rules, series.attributes),
        _counts(rules, series),
    )
    for depth, reason in enumerate(checks):
        if reason is not None:
            return depth, reason
    return None


def _rank(
    prefer: Mapping[str, str], series: SeriesFacts, timeout: float
) -> tuple[int, int, float, float, str]:
    """Order among series that all fit: preferred, most images, thinnest, lowest number, UID."""
    hits = 0
    for keyword, pattern in prefer.items():
        values = as_values(series.attributes.get(keyword))
        hits += any(search(pattern, str(v), timeout) for v in values)
    thickness = as_number(series.attributes.get("SliceThickness"))
    number = as_number(series.attributes.get("SeriesNumber"))
    return (
        -hits,
        -_slices(series),
        thickness if thickness is not None else 1e9,
        number if number is not None else 1e9,
        series.series_instance_uid,
    )


def _name(series: SeriesFacts) -> str:
    number = as_number(series.attributes.get("SeriesNumber"))
    modality = str(series.attributes.get("Modality", "?"))[:16]
    return f"series {int(number)} ({modality})" if number is not None else f"a series ({modality})"


def _none_fits(role: str, refused: list[tuple[int, str, SeriesFacts]], total: int) -> Unwanted:
    best = sorted(refused, key=lambda item: -item[0])
    said = "; ".join(f"{_name(s)}: {reason}" for _, reason, s in best[:_MAX_REASONS])
    more = f"; and {len(best) - _MAX_REASONS} more" if len(best) > _MAX_REASONS else ""
    which = "" if role == "image" else f" for the role {role}"
    open_ = any(depth == _COUNTS and not s.complete for depth, _, s in best)
    if not said:
        said = "every series that fits is taken by another role" if total else "it has no images"
    return Unwanted(f"No series of this study fits{which}: {said}{more}.", settled=not open_)


def _same_frame(role: Mapping[str, Any], series: SeriesFacts, chosen: Mapping[str, Any]) -> bool:
    other = chosen.get(str(role.get("same_frame_of_reference_as", "")))
    if other is None:
        return True
    mine = series.attributes.get("FrameOfReferenceUID")
    return bool(mine) and mine == other.attributes.get("FrameOfReferenceUID")


def choose(
    package: Package,
    series: Sequence[SeriesFacts],
    study: StudyFacts,
    *,
    timeout: float = 0.1,
) -> Choice | Unwanted:
    """Choose a series for each role of `package`, or say why there is none.

    Choices do not depend on the order of `series`. Unknown age or sex match
    with a warning. `timeout` (seconds) bounds each search of a vendor's
    pattern; PackageError when it is exceeded.
    """
    rules = package.input
    reason, warnings = _patient(rules, study)
    if reason is not None:
        return Unwanted(f"The model is not meant for this patient: {reason}.")
    roles = rules["series"]
    settled = len(roles) == 1 and not rules.get("prefer")
    chosen: dict[str, SeriesFacts] = {}
    for role in roles:
        fits: list[SeriesFacts] = []
        refused: list[tuple[int, str, SeriesFacts]] = []
        for item in series:
            if item in chosen.values():
                continue
            why = _why_not(rules, role, item, timeout)
            if why is None and not _same_frame(role, item, chosen):
                why = (3, "FrameOfReferenceUID is another one")
            if why is None:
                fits.append(item)
            else:
                refused.append((*why, item))
        if not fits:
            if role.get("required", True):
                return _none_fits(role["role"], refused, len(series))
            continue
        prefer = role.get("prefer") or rules.get("prefer") or {}
        settled = settled and len(fits) == 1 and not prefer
        chosen[role["role"]] = min(fits, key=lambda s: _rank(prefer, s, timeout))
    if not chosen:
        return Unwanted("No series of this study fits any role.")
    uids = {name: item.series_instance_uid for name, item in chosen.items()}
    return Choice(uids, tuple(warnings), settled)
