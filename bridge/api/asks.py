"""What a request asks for: a page or data, and the words it may hold."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from pydantic import AfterValidator

from bridge.errors import NotFound, WrongUse
from bridge.study import StudyState, is_uid_as_sent


def wants_page(request: Request) -> bool:
    """Whether a page is asked for: HTML is accepted and the address does not end in .json."""
    accept = request.headers.get("accept", "")
    return "text/html" in accept and not request.url.path.endswith(".json")


def wants_json(request: Request) -> bool:
    """Whether the JSON twin is asked for, by address or by Accept."""
    accept = request.headers.get("accept", "")
    asked = "application/json" in accept and "text/html" not in accept
    return asked or request.url.path.endswith(".json")


def uid(text: str) -> str:
    """Let a UID pass; whatever is none cannot be here (NotFound)."""
    if not is_uid_as_sent(text):
        raise NotFound
    return text


def state(text: str) -> StudyState | None:
    """Read a state from a query string; "" is no filter, WrongUse names the states."""
    if not text:
        return None
    if text not in set(StudyState):
        raise WrongUse("state is one of: " + ", ".join(StudyState))
    return StudyState(text)


UidPath = Annotated[str, AfterValidator(uid)]
Page = Annotated[int, Query(ge=1, le=100_000)]
