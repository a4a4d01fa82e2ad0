"""Read models made ready for a page or its JSON twin; identity is masked here, once."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from fastapi.encoders import jsonable_encoder
from fastapi.responses import HTMLResponse, Response

from bridge.access import Permission, Principal
from bridge.api.rooms import Act, StudyPage, StudyQuery
from bridge.study import StudyLine, StudyState, StudyStory
from bridge.web.pages import fingerprint

PAGE = 50
SAID = {
    str(Act.COMPLETE): "Declared complete. What is held is read now.",
    str(Act.RETRY): "Tried again from the step that failed.",
    str(Act.CANCEL): "Cancelled. What was already delivered stays where it is.",
}
_MOVING = frozenset({StudyState.RECEIVING, StudyState.WORKING})
_STUCK = frozenset({StudyState.FAILED, StudyState.ATTENTION})


def masked(line: StudyLine, who: Principal) -> StudyLine:
    """Take the patient out of a line, unless the reader may know."""
    if who.may(Permission.IDENTITY_READ):
        return line
    return replace(line, patient_id="", patient_name="", accession_number="")


def masked_page(page: StudyPage, who: Principal) -> StudyPage:
    """Mask a page of lines."""
    return replace(page, lines=tuple(masked(line, who) for line in page.lines))


def masked_story(story: StudyStory, who: Principal) -> StudyStory:
    """Mask a story; series descriptions are free text and go too."""
    if who.may(Permission.IDENTITY_READ):
        return story
    series = tuple(replace(one, description="") for one in story.series)
    return replace(story, line=masked(story.line, who), series=series)


def as_json(value: Any) -> Any:
    """Give a frozen word as JSON: times as ISO 8601 with offset, states as their names."""
    return jsonable_encoder(asdict(value))


def page_as_json(page: StudyPage, query: StudyQuery) -> dict[str, Any]:
    """Give a page of studies as JSON."""
    return {
        "studies": [as_json(line) for line in page.lines],
        "total": page.total,
        "page": query.offset // PAGE + 1,
        "page_size": PAGE,
        "counts": {str(state): page.counts.get(state, 0) for state in StudyState},
    }


def list_context(page: StudyPage, query: StudyQuery) -> dict[str, Any]:
    """Give the words of the list page."""
    number = query.offset // PAGE + 1
    fixed = {"modality": query.modality}
    current = {"state": query.state or "", **fixed, "page": number if number > 1 else ""}
    return {
        "page": page,
        "query": query,
        "filters": [
            (state, page.counts.get(state, 0), _address({"state": state, **fixed}))
            for state in StudyState
        ],
        "all_count": sum(page.counts.values()),
        "all_address": _address(fixed),
        "here": _address(current),
        "here_json": _address(current, "/studies.json"),
        "number": number,
        "first": query.offset + 1,
        "last": query.offset + len(page.lines),
        "newer_address": _address({**current, "page": number - 1 if number > 2 else ""}),
        "older_address": _address({**current, "page": number + 1}),
    }


def story_context(story: StudyStory) -> dict[str, Any]:
    """Give the words of a study's page: routes split, facts grouped by generation."""
    state = story.line.state
    grouped = groupby(story.lines, key=lambda line: line.generation)
    acts = {
        Act.COMPLETE: state is StudyState.RECEIVING,
        Act.RETRY: state in _STUCK,
        Act.CANCEL: state in _MOVING,
    }
    return {
        "story": story,
        "line": story.line,
        "wanted": [route for route in story.routes if route.id is not None],
        "unwanted": [route for route in story.routes if route.id is None],
        "generations": [(number, list(lines)) for number, lines in grouped],
        "acts": [act for act, possible in acts.items() if possible],
        "pause": "2s" if state in _MOVING else "15s",
    }


def fragment(html: str, seen: str) -> Response:
    """Answer a refresh: 204 when the reader already sees this, so that nothing moves."""
    mark = fingerprint(html)
    if seen == mark:
        return Response(status_code=204)
    return HTMLResponse(html)


def _address(filters: dict[str, Any], path: str = "/studies") -> str:
    given = {key: str(value) for key, value in filters.items() if value}
    return f"{path}?{urlencode(given)}" if given else path
