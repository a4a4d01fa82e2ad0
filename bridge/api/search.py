"""For whoever looks for a patient: a search that leaves no trace in addresses and logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from bridge.access import Permission, Principal
from bridge.api import asks, views
from bridge.api.doors import House, Paper, RequiresForm
from bridge.api.rooms import StudyQuery
from bridge.study import is_uid
from bridge.web.pages import fingerprint

router = APIRouter(prefix="/studies")
Searcher = Annotated[Principal, Depends(RequiresForm(Permission.PATIENTS_SEARCH))]


@router.post("/search", name="search")
@router.post("/search.json", name="search_json")
def search(
    request: Request,
    who: Searcher,
    rooms: House,
    pages: Paper,
    text: Annotated[str, Form(max_length=128)] = "",
    page: Annotated[int, Form(ge=1, le=100_000)] = 1,
) -> Response:
    """Find studies by patient id, name, accession number or UID; a UID leads to its page."""
    text = text.strip()
    if asks.wants_page(request):
        if not text:
            return RedirectResponse("/studies", 303)
        if "." in text and is_uid(text) and rooms.story(text) is not None:
            return RedirectResponse(f"/studies/{text}", 303)
    query = StudyQuery(text=text, offset=(page - 1) * views.PAGE, limit=views.PAGE)
    found = views.masked_page(rooms.studies(query), who)
    if not asks.wants_page(request):
        return JSONResponse(views.page_as_json(found, query))
    context = views.list_context(found, query)
    rows = pages.render("_studies.html", {**context, "who": who})
    context.update(rows=rows, mark=fingerprint(rows), text=text, searched=True)
    return pages.answer(request, "studies.html", context)
