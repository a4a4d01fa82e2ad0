"""The manifest and the pages of the package ct_lung_density, as its build script writes them."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["LICENSE", "README", "manifest"]

LICENSE: Final = """\
The package ct_lung_density is part of radseal and licensed like it: Apache-2.0.
"""

README: Final = """\
# CT lung density

Lung volume, mean lung density, LAA-950 (share of lung voxels below -950 HU) and Perc15
(15th percentile of density) on a chest CT without contrast, and the mask they were taken from.

Research only. Not a medical device. No learned weights: thresholds, connected pieces and
counting, all inside the ONNX graph; `build_ct_lung_density.py` beside this folder says how.

Lung is what lies below -500 HU inside the body and belongs to a piece of at least 15 % of the
largest. Trachea and main bronchi are left out where a wall separates them from the lungs at a
resolution of about 3 mm; smaller airways inside the lungs count as lung, vessels do not.
LAA-950 and Perc15 depend on dose, reconstruction kernel and slice thickness: compare only like
with like. Consolidated lung is denser than the threshold and is not counted.
"""


def _code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"value": value, "scheme": scheme, "meaning": meaning}


_HU: Final = _code("[hnsf'U]", "UCUM", "Hounsfield unit")
_LAA950: Final = _code("LAA950", "99RADSEAL", "Low attenuation area below -950 HU")
_PERC15: Final = _code("PERC15", "99RADSEAL", "15th percentile of lung density")
_PERCENT: Final = _code("%", "UCUM", "Percent")


def _number(tensor: str, what: dict[str, str], unit: dict[str, str], limits: list[int],
            places: int) -> dict[str, Any]:  # fmt: skip
    return {
        "tensor": tensor,
        "kind": "measurement",
        "valid_range": limits,
        "measurements": [{"what": what, "unit": unit, "label": 1, "rounding": places}],
    }


def _outputs() -> list[dict[str, Any]]:
    return [
        {
            "tensor": "mask",
            "kind": "segmentation",
            "decode": "none",
            "labels": [
                {
                    "index": 1,
                    "label": "Lungs",
                    "category": _code("91723000", "SCT", "Anatomical Structure"),
                    "type": _code("39607008", "SCT", "Lung"),
                    "color": [86, 180, 233],
                }
            ],
            "measurements": [
                {
                    "what": _code("118565006", "SCT", "Volume"),
                    "unit": _code("mL", "UCUM", "Milliliter"),
                    "per": "label",
                    "rounding": 1,
                }
            ],
        },
        _number("mean_hu", _code("112181", "DCM", "Mean Attenuation Coefficient"), _HU,
                [-1100, -500], 1),
        _number("laa950_percent", _LAA950, _PERCENT, [0, 100], 2),
        _number("perc15_hu", _PERC15, _HU, [-1100, -500], 0),
    ]  # fmt: skip


def _tensor(
    kind: str, shape: list[str], dtype: str, limits: list[int], name: str
) -> dict[str, Any]:
    return {
        "type": "image",
        "format": kind,
        "modality": "CT" if kind == "hounsfield" else "n/a",
        "num_channels": 1,
        "spatial_shape": shape,
        "dtype": dtype,
        "value_range": limits,
        "is_patch_data": False,
        "channel_def": {"0": name},
    }


def _input() -> dict[str, Any]:
    return {
        "series": [
            {
                "role": "image",
                "selections": [
                    {
                        "name": "axial chest CT in slices up to 5 mm",
                        "conditions": {
                            "Modality": "CT",
                            "ImageType": ["!LOCALIZER"],
                            "ImageOrientationPatient": "Axial",
                            "SliceThickness": [0.3, 5],
                        },
                    }
                ],
                "prefer": {
                    "ConvolutionKernel": "b[2-4]\\d|br[2-4]\\d|std|standard|soft|^b$|fc0|fc1"
                },
            }
        ],
        "sop_classes": ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"],
        "body_parts": ["CHEST", "THORAX", "LUNG", "LUNGS"],
        "body_part_required": False,
        "min_slices": 40,
        "max_slices": 1500,
        "max_slice_gap_mm": 5.0,
        "patient": {"min_age_years": 18},
    }


def _deployment(model_sha256: str) -> dict[str, Any]:
    return {
        "manifest_version": 1,
        "identity": {
            "id": "org.radseal.ct-lung-density",
            "name": "CT lung density",
            "vendor": "radseal",
            "contact": "",
            "license": "Apache-2.0",
            "model_sha256": model_sha256,
        },
        "regulatory": {
            "status": "research-only",
            "clearances": [],
            "udi": None,
            "risk_class": None,
            "contraindications": "Contrast medium, consolidation, thick slices, sharp kernels",
        },
        "algorithm": {
            "family": _code("123104", "DCM", "Morphological Operations"),
            "source": "radseal",
            "parameters": ["air < -500 HU", "emphysema < -950 HU", "pieces >= 15 % of largest"],
        },
        "input": _input(),
        "preprocess": [{"op": "Rescale", "to": "HU"}],
        "layout": "NCDHW",
        "outputs": _outputs(),
        "results": {
            "seg": True,
            "sr": "TID1500",
            "secondary_capture": True,
            "window": {"center": -600, "width": 1500},
        },
        "selftest": {"layout": "onnx test_data_set", "atol": 0.001, "rtol": 0},
        "execution": {
            "providers": ["CPUExecutionProvider"],
            "intra_threads": 2,
            "max_batch": 1,
            "timeout_s": 300,
            "memory_mb": 6144,
        },
    }


def manifest(model_sha256: str) -> dict[str, Any]:
    """Return configs/metadata.json for the graph with this digest."""
    free = ["*", "*", "*"]
    return {
        "version": "1.0.0",
        "task": "Lung volume and density on chest CT",
        "description": "Threshold, connected pieces and counting, all in ONNX; no learned weights",
        "authors": "The radseal authors",
        "copyright": "The radseal authors, Apache-2.0",
        "intended_use": "Research only. Not a medical device.",
        "references": ["https://doi.org/10.1378/chest.94.4.782"],
        "network_data_format": {
            "inputs": {"hu": _tensor("hounsfield", free, "float32", [-1024, 3071], "HU")},
            "outputs": {
                "mask": _tensor("segmentation", free, "uint8", [0, 1], "lungs"),
                "mean_hu": _tensor("number", [], "float32", [-1100, -500], "mean HU"),
                "laa950_percent": _tensor("number", [], "float32", [0, 100], "percent"),
                "perc15_hu": _tensor("number", [], "float32", [-1100, -500], "HU"),
            },
        },
        "deployment": _deployment(model_sha256),
    }
