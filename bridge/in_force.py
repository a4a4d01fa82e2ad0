"""Which settings are in force: said in the log when the service starts with other ones.

`config.changed` holds the SHA-256 of all effective settings (site.toml, the environment, the
defaults) in canonical JSON, the digest before it, and the names of the keys that changed. Values
stay here, in the table `settings`, so that the next change can be named. No secret is among them:
keys and tokens are files, and a password in `database.url` is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from bridge.rooms import Rooms
from bridge.site import Site
from bridge.store import settings
from bridge.store.database import reading, writing
from ledger import leaf

__all__ = ["effective", "say_changed"]

_MOST_KEYS = 200  # a leaf holds 65,535 bytes


def effective(site: Site) -> dict[str, str]:
    """Give every setting by its name ("listener.port", "sources.ct1"), as canonical JSON."""
    found: dict[str, str] = {}
    for name, value in site.model_dump(mode="json", exclude={"folder"}).items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": _json(one) for key, one in value.items()}
        elif isinstance(value, list):
            found |= {f"{name}.{one['name']}": _json(one) for one in value}
        else:
            found[name] = _json(value)
    found["database.url"] = _json(_without_password(site.database.url))
    return found


def say_changed(rooms: Rooms) -> str | None:
    """Append config.changed if the settings are not those that were said last; give the leaf.

    The log is asked, not the table: a crash between the two only makes the table catch up.
    """
    values = effective(rooms.site)
    digest = hashlib.sha256(_json(values).encode()).hexdigest()
    said = rooms.record.log.select(type="config.changed")
    previous = rooms.record.body(leaf.ref(said[-1][0]))["digest"] if said else None
    with reading(rooms.database) as connection:
        before = settings.kept(connection)
    told = None
    if digest != previous:
        changed = sorted(k for k in values.keys() | before if values.get(k) != before.get(k))
        told = rooms.record.say(
            "config.changed", f"config/{len(said)}/{digest[:32]}",
            {
                "digest": digest,
                **({"previous": previous} if previous else {}),
                **({"keys": changed[:_MOST_KEYS]} if previous and before else {}),
            },
        )  # fmt: skip
    if values != before:
        with writing(rooms.database) as connection:
            settings.keep(connection, values)
    return told


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, colon, _ = parts.netloc.rpartition("@")[0].partition(":")
    if not colon:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}@{host}"))
