"""What a verified file proves, and what it does not, in words and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.audit.chain import Chain, Link
from bridge.audit.file import FileReport
from ledger.policy import UNWITNESSED, signature_lines

__all__ = ["NOT_PROVEN", "as_json", "as_text", "first_line"]

NOT_PROVEN = (
    "which images were read: the input root is keyed, and the study's key is the site's",
    "that nothing was withdrawn, retired or superseded since",
    "that it was delivered, or to whom",
)
_STEPS = (
    ("model registered", "registered"), ("model approved", "approved"),
    ("model activated", "activated"), ("study received", "received"), ("input sealed", "sealed"),
    ("consent checked", "checked"), ("inference started", "started"), ("inference ended", "ended"),
    ("result composed", "composed"),
)  # fmt: skip
_CONSENT = (
    "decision", "basis", "purpose", "policy", "policy_digest", "engine", "reason", "stage",
    "matched", "valid_until", "override",
)  # fmt: skip
_INPUT = ("root", "counts", "evidence", "generation", "digest", "decoders")


def first_line(report: FileReport) -> str:
    """Say the verdict in one line; programs rely on the words of a changed identity."""
    if report.changed:
        return "content proven; patient identity is not the one it was composed for: " + ", ".join(
            report.changed
        )
    return "content proven; patient identity is the one it was composed for"


def as_json(report: FileReport, witnessed: Mapping[str, int]) -> dict[str, Any]:
    """Give everything for programs; `witnessed` is what is known of witnesses."""
    chain = report.chain
    said = chain.composed.body
    return {
        "verified": True,
        "what": "file",
        "identity": "changed" if report.changed else "unchanged",
        "changed": list(report.changed),
        "sop_instance_uid": report.sop_instance_uid,
        "sop_class_uid": report.sop_class_uid,
        "kind": said["kind"],
        "revision": said["revision"],
        "partial": bool(said.get("partial", False)),
        "origin": report.verdict.checkpoint.origin,
        "index": chain.composed.index,
        "size": report.verdict.checkpoint.size,
        "proven": _proven(chain),
        "witnessed": dict(witnessed),
        "carried_from": carried_from(chain),
        "not_proven": [*_not_proven(chain), *([] if witnessed else [UNWITNESSED])],
        "not_carried": [
            {"rel": gone.rel, "leaf": gone.leaf, "named_by": gone.named_by}
            for gone in chain.absent
        ],
        "not_checked": list(report.verdict.unchecked),
        "leaves": [{"index": x.index, "type": x.type, "time": x.time, "leaf": x.ref}
                   for x in _in_order(chain)],
    }  # fmt: skip


def carried_from(chain: Chain) -> list[str]:
    """Name the earlier logs whose leaves this log says again, word for word."""
    said = (link.record.get("carried") for link in _in_order(chain))
    return sorted({one["origin"] for one in said if one is not None})


def _not_proven(chain: Chain) -> list[str]:
    told = "that {} holds the leaves that were carried over from it: verify that log too"
    return [*NOT_PROVEN, *(told.format(origin) for origin in carried_from(chain))]


def _proven(chain: Chain) -> dict[str, Any]:
    registered, route = chain.registered.body, chain.sealed.body["route"]
    package = chain.started.body.get("package", registered.get("package"))
    return {
        "model": {
            "digest": chain.started.body["model"], "id": registered["id"],
            "version": registered["version"], "vendor": registered["vendor"], "package": package,
            "approved_by": chain.approved.body["by"] if chain.approved else None,
        },
        "input": {
            "roles": list(route["roles"]),
            **{key: chain.sealed.body[key] for key in _INPUT if key in chain.sealed.body},
        },
        "consent": {
            **{key: chain.checked.body[key] for key in _CONSENT if key in chain.checked.body},
            "documents": [link.ref for link in chain.consents],
        },
        "outcome": {"type": chain.ended.type, "reason": chain.ended.body.get("reason")},
        "times": {name: link.time for name, link in _steps(chain)},
        "results": [{"kind": link.body["kind"], "leaf": link.ref} for link in chain.results],
        "subject": chain.composed.record["subject"],
        "study": chain.composed.record["study"],
    }  # fmt: skip


def _steps(chain: Chain) -> list[tuple[str, Link]]:
    found = [(words, getattr(chain, name)) for words, name in _STEPS]
    return [(words, link) for words, link in found if link is not None]


def _in_order(chain: Chain) -> list[Link]:
    links = [link for _, link in _steps(chain)] + [*chain.consents, *chain.results]
    return sorted(links, key=lambda link: link.index)


def as_text(report: FileReport, witnessed: Mapping[str, int]) -> list[str]:
    """Give the lines that a person reads: the verdict, what is proven, what is not."""
    said, proven = as_json(report, witnessed), _proven(report.chain)
    model, source, consent = proven["model"], proven["input"], proven["consent"]
    whole = f"{said['kind']}, revision {said['revision']}{', PARTIAL' if said['partial'] else ''}"
    counts = ", ".join(f"{count} {role}" for role, count in source["counts"].items())
    lines = [
        first_line(report),
        "",
        f"Proven by {said['origin']}, leaf {said['index']} of {said['size']}:",
        _row("object", f"{whole}: these bytes, SOP Instance {said['sop_instance_uid']}"),
        _row("model", f"{model['id']} {model['version']} by {model['vendor']}"),
        _row("", f"SHA-256 {model['digest']}"),
        _row("input", f"{counts} ({', '.join(source['roles'])}), root {source['root']}"),
        _row("", f"complete because: {_fact(source['evidence'])}"),
        _row("consent", f"{consent['decision']} for {consent['purpose']}, by {consent['basis']}"),
        _row("", f"policy {consent['policy']}, engine {consent['engine']}: {consent['reason']}"),
        _row("outcome", " ".join(filter(None, proven["outcome"].values()))),
        *(_row("stands on", f"the {one['kind']}: leaf {one['leaf']}") for one in proven["results"]),
        "in this order (the site's clock):",
        *(
            f"  {link.time}  leaf {link.index:<8} {words}"
            for words, link in sorted(_steps(report.chain), key=lambda step: step[1].index)
        ),
        "",
        "Not proven:",
        *(f"  - {words}" for words in _not_proven(report.chain)),
    ]
    if said["not_carried"]:
        lines += ["", "Named by hash, not carried in the file:"]
        lines += [f"  - {x['rel']} of {x['named_by']}: {x['leaf']}" for x in said["not_carried"]]
    return lines + signature_lines(report.verdict.unchecked, witnessed)


def _row(head: str, text: str) -> str:
    return f"  {head:<10} {text}"


def _fact(value: Any) -> str:
    """Spell a leaf's facts on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_fact, value))
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "unknown"}[value]
    return str(value)
