"""A fact of an earlier log of the same site, said again word for word in this one. Pure.

A log that goes on where another ended (`log.continued`) holds none of its leaves. What stands on
one of them needs it here: the old record is appended again, unchanged but for two things.

    refs      name the same leaves as they stand in this log
    carried   {"origin": the old log, "leaf": its hash there, "before": its own `carried`, if any}

So the old leaf's bytes, and with them its hash, can be made from what stands in this log, and a
proof in the old log is a proof of this fact. Its time is the old one: when it happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledger import leaf, merkle

__all__ = ["carry", "is_word_for_word", "original", "unproven"]


def carry(old: Mapping[str, Any], origin: str, refs: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the record for this log; `refs` are the old ones with their leaves' hashes here."""
    said: dict[str, Any] = {"origin": origin, "leaf": leaf.ref(merkle.leaf_hash(leaf.render(old)))}
    if "carried" in old:
        said["before"] = old["carried"]
    made = {**old, "carried": said}
    if refs:
        made["refs"] = [dict(one) for one in refs]
    return leaf.parse(leaf.render(made))


def original(record: Mapping[str, Any], was: Mapping[str, str]) -> bytes:
    """Return the bytes of the old leaf; `was` gives the old hash of each leaf it refers to here.

    Raises KeyError where one of these was not carried itself.
    """
    made = {key: value for key, value in record.items() if key not in ("carried", "refs")}
    if "before" in record["carried"]:
        made["carried"] = record["carried"]["before"]
    if refs := record.get("refs"):
        made["refs"] = [{"rel": one["rel"], "leaf": was[one["leaf"]]} for one in refs]
    return leaf.render(made)


def is_word_for_word(record: Mapping[str, Any], was: Mapping[str, str]) -> bool:
    """Whether a carried record is the leaf whose hash it names, nothing added, nothing changed."""
    try:
        data = original(record, was)
    except KeyError:
        return False
    return leaf.ref(merkle.leaf_hash(data)) == str(record["carried"]["leaf"])


def unproven(origin: str, count: int) -> str:
    """Say that a log without the earlier one proves nothing of what it carries from that."""
    what = "leaf is carried" if count == 1 else "leaves are carried"
    proven = "it is proven" if count == 1 else "they are proven"
    return f"{count} {what} from {origin}; {proven} only together with that log"
