"""The packages we ship, pinned by the digest of every byte in them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["DIGESTS", "folder"]

DIGESTS: Final = MappingProxyType(
    {
        "ct_lung_density": "6bdcb7fc621fadecba2602a31c13db662ebff5acb3e0147901302946c2731608",
    }
)
"""Folder name → package digest (models.package.Package.package_digest)."""


def folder(name: str) -> Path:
    """Where a bundled package lies; KeyError for a name that is not shipped."""
    if name not in DIGESTS:
        raise KeyError(name)
    return Path(__file__).resolve().parent / name
