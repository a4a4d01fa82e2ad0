"""Templates to HTML, and the few words that templates may use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from bridge.access import Permission, Principal

_STATIC = {
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "htmx-2.0.11.min.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
}


class Pages:
    """All pages of one site. Everything is escaped; an unknown name in a template is an error."""

    def __init__(self, site_name: str, version: str) -> None:
        self.static = {name: _read(name) for name in _STATIC}
        self._env = Environment(
            loader=PackageLoader("bridge.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.filters.update(
            tone=tone,
            stamp=stamp,
            iso=iso,
            dicom_date=dicom_date,
            short=short,
            person=person,
            size=size,
        )
        self._env.globals.update(
            site_name=site_name, version=version, asset=self.asset, Permission=Permission
        )

    def asset(self, name: str) -> str:
        """Give the address of a static file; it changes with the content."""
        return f"/static/{name}?v={hashlib.sha256(self.static[name]).hexdigest()[:10]}"

    def media_type(self, name: str) -> str | None:
        """Give the content type of a static file, None if there is no such file."""
        return _STATIC.get(name)

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        """Fill in a template."""
        return self._env.get_template(template).render(**context)

    def answer(
        self,
        request: Request,
        template: str,
        context: Mapping[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> HTMLResponse:
        """Answer with a page; templates know `who`, the caller, None when nobody was asked."""
        who = getattr(request.state, "principal", None)
        known = who if isinstance(who, Principal) and who.role is not None else None
        html = self.render(template, {"who": known, **context})
        return HTMLResponse(html, status, dict(headers or {}))


def fingerprint(html: str) -> str:
    """Name what a fragment shows, so that an unchanged one need not be sent again."""
    return hashlib.sha256(html.encode()).hexdigest()[:16]


def iso(at: datetime) -> str:
    """Give a time for machines: ISO 8601, UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stamp(at: datetime) -> str:
    """Give a time for people without script: UTC to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def dicom_date(value: str) -> str:
    """Write a DICOM DA as 2026-11-24; anything else as it is."""
    if len(value) == 8 and value.isdigit():
        return f"{value[:4]}-{value[4:6]}-{value[6:]}"
    return value


def person(value: str) -> str:
    """Write a DICOM PN for people: "Doe^John" as "Doe, John", ideographic groups after it."""
    groups = [group.split("^") for group in value.split("=")]
    names = []
    for parts in groups:
        family, given = parts[0].strip(), " ".join(p.strip() for p in parts[1:3] if p.strip())
        names.append(", ".join(p for p in (family, given) if p))
    return " · ".join(name for name in names if name)


def short(text: str, keep: int = 12) -> str:
    """Shorten a digest or UID from its end; the whole stands in a title beside it."""
    return text if len(text) <= keep else text[:keep] + "…"


def tone(code: str) -> str:
    """Say how a fact of a study's story looks: "bad", "warn" or "" (as it should be)."""
    last = code.rpartition(".")[2]
    if last in {"failed", "dead", "bomb", "undecodable", "conflict"}:
        return "bad"
    quiet = {
        "deny",
        "denied",
        "quarantine",
        "identity",
        "held",
        "warning",
        "unwanted",
        "correction",
    }
    return "warn" if last in quiet else ""


def size(count: int) -> str:
    """Write a number of bytes for people, in powers of 1000."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def _read(name: str) -> bytes:
    return (resources.files("bridge.web") / "static" / name).read_bytes()
