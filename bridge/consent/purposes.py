"""Purposes of use, confidentiality and sensitivity: the code systems that consent speaks.

Purposes are v3-ActReason 3.1.0 (2024-02-28), confidentiality v3-Confidentiality 3.0.0,
sensitivity v3-ActCode 9.0.0, each as far as an order exists in it. A code that stands in no
table here equals itself and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ACT_CODE",
    "ACT_REASON",
    "CONFIDENTIALITY",
    "LOCAL_PURPOSE",
    "NORMAL",
    "Coding",
    "act_reason",
    "ancestors",
    "explicit_only",
    "known",
    "rank",
    "sensitivity_ancestors",
]

ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
LOCAL_PURPOSE = "urn:radseal:purpose"


class Coding(NamedTuple):
    """A code of a system; ``system`` is empty where a document named none."""

    system: str
    code: str


NORMAL = Coding(CONFIDENTIALITY, "N")

_CHILDREN = {
    "TREAT": "CLINTRL COC ETREAT POPHLTH TREATDS",
    "ETREAT": "BTG ERTREAT",
    "HPAYMT": "CLMATTCH COVAUTH COVERAGE REMITADV PMTDS",
    "COVERAGE": "ELIGDTRM ELIGVER ENROLLM MILDCRG",
    "HOPERAT": "CAREMGT DONAT FRAUD GOV HACCRED HCOMPL HDECD HDIRECT HDM HLEGAL HOUTCOMS HPRGRP"
    " HQUALIMP HSYSADMIN MEMADMIN MILCDM PATADMIN PATSFTY PERFMSR RECORDMGT SYSDEV TRAIN"
    " MLTRAINING",
    "HSYSADMIN": "LABELING METAMGT",
    "SYSDEV": "HTEST",
    "HRESCH": "BIORCH CLINTRCH DSRCH POARCH TRANSRCH",
    "CLINTRCH": "CLINTRCHNPC CLINTRCHPC PRECLINTRCH",
    "PATRQT": "FAMRQT PWATRNY SUPNWK",
    "PUBHLTH": "DISASTER THREAT",
}
_TOP = frozenset(("HMARKT", "HOPERAT", "HPAYMT", "HRESCH", "PATRQT", "PUBHLTH", "TREAT"))
_PARENT = {child: parent for parent, text in _CHILDREN.items() for child in text.split()}

_SENSITIVITIES = {
    "SPI": "BH MH PSY PSYTHPN SUD",
    "BH": "COGN DVD EMOTDIS",
    "SUD": "ETHUD OPIOIDUD",
}
_SENSITIVITY_PARENT = {
    child: parent for parent, text in _SENSITIVITIES.items() for child in text.split()
}
_RANK = {code: rank for rank, code in enumerate("ULMNRV")}


def act_reason(code: str) -> Coding:
    """Return the purpose with this code: of v3-ActReason, or our own LABELTRAIN."""
    return Coding(LOCAL_PURPOSE if code == "LABELTRAIN" else ACT_REASON, code)


def known(purpose: Coding) -> bool:
    """Whether the tables hold this purpose."""
    return purpose == act_reason("LABELTRAIN") or (
        purpose.system == ACT_REASON and (purpose.code in _PARENT or purpose.code in _TOP)
    )


def ancestors(purpose: Coding) -> tuple[Coding, ...]:
    """Return the purposes that this one is a kind of, nearest first, itself not among them.

    Labelling images to train models (LABELTRAIN, ours: HL7 has none) is a kind of MLTRAINING.
    """
    if purpose == act_reason("LABELTRAIN"):
        training = act_reason("MLTRAINING")
        return (training, *ancestors(training))
    found: list[Coding] = []
    code = purpose.code if purpose.system == ACT_REASON else ""
    while (parent := _PARENT.get(code)) is not None:
        found.append(act_reason(parent))
        code = parent
    return tuple(found)


def explicit_only(purpose: Coding) -> bool:
    """Whether only a permit that lists this very purpose counts; denials are still inherited.

    MLTRAINING stands under HOPERAT: without this rule every consent to healthcare operations
    would allow training on the patient's images.
    """
    return purpose in {act_reason("MLTRAINING"), act_reason("LABELTRAIN")}


def rank(label: Coding) -> int | None:
    """Return the place of a confidentiality label in U < L < M < N < R < V, else None."""
    return _RANK.get(label.code) if label.system == CONFIDENTIALITY else None


def sensitivity_ancestors(label: Coding) -> tuple[Coding, ...]:
    """Return the sensitivities that this one is a kind of, nearest first."""
    found: list[Coding] = []
    code = label.code if label.system == ACT_CODE else ""
    while (parent := _SENSITIVITY_PARENT.get(code)) is not None:
        found.append(Coding(ACT_CODE, parent))
        code = parent
    return tuple(found)
