"""For the reading room and the PACS administrator: the studies, and one study's story."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from bridge.access import Permission, Principal
from bridge.api import asks, views
from bridge.api.doors import House, Paper, Requires
from bridge.api.rooms import StudyQuery
from bridge.errors import NotFound
from bridge.report.text import as_text
from bridge.study import ArtifactKind
from bridge.web import picture
from bridge.web.pages import fingerprint

_reads = Requires(Permission.STUDIES_READ)
router = APIRouter(prefix="/studies")
Reader = Annotated[Principal, Depends(_reads)]


@router.get("", name="studies")
@router.get(".json", name="studies_json")
def studies(
    request: Request,
    who: Reader,
    rooms: House,
    pages: Paper,
    state: str = "",
    modality: str = "",
    page: asks.Page = 1,
    seen: str = "",
) -> Response:
    """List studies; every filter stands in the address. `seen` spares an unchanged fragment."""
    query = StudyQuery(
        state=asks.state(state),
        modality=modality[:16].upper(),
        offset=(page - 1) * views.PAGE,
        limit=views.PAGE,
    )
    found = views.masked_page(rooms.studies(query), who)
    if asks.wants_json(request):
        return JSONResponse(views.page_as_json(found, query))
    context = views.list_context(found, query)
    rows = pages.render("_studies.html", {**context, "who": who})
    if request.headers.get("hx-request"):
        return views.fragment(rows, seen)
    context.update(rows=rows, mark=fingerprint(rows), text="", searched=False)
    return pages.answer(request, "studies.html", context)


@router.get("/{uid}", name="study")
@router.get("/{uid}.json", name="study_json")  # the lower one is asked first
def study(
    request: Request,
    uid: asks.UidPath,
    who: Reader,
    rooms: House,
    pages: Paper,
    seen: str = "",
    said: str = "",
) -> Response:
    """Tell one study's story: times, reasons, results, and the leaf of each fact."""
    story = rooms.story(uid)
    if story is None:
        raise NotFound("No such study is held here.")
    story = views.masked_story(story, who)
    if asks.wants_json(request):
        return JSONResponse(views.as_json(story))
    context = views.story_context(story)
    html = pages.render("_story.html", {**context, "who": who})
    if request.headers.get("hx-request"):
        return views.fragment(html, seen)
    context.update(body=html, mark=fingerprint(html), said=views.SAID.get(said, ""))
    return pages.answer(request, "study.html", context)


@router.get("/{uid}/artifacts/{sop}.png", name="picture")
def summary_picture(uid: asks.UidPath, sop: asks.UidPath, who: Reader, rooms: House) -> Response:
    """Show a summary image as PNG; other kinds have no picture."""
    file = rooms.artifact(uid, sop, who)
    if file.kind is not ArtifactKind.SUMMARY:
        raise NotFound("This result has no picture.")
    cache = {"Cache-Control": "private, max-age=3600"}
    return Response(picture.png(file.path), media_type="image/png", headers=cache)


@router.get("/{uid}/artifacts/{sop}.txt", name="report_text")
def report_text(uid: asks.UidPath, sop: asks.UidPath, who: Reader, rooms: House) -> Response:
    """Give a structured report as text."""
    file = rooms.artifact(uid, sop, who)
    if file.kind is not ArtifactKind.SR:
        raise NotFound("This result has no text.")
    return Response(as_text(picture.read(file.path)), media_type="text/plain; charset=utf-8")
