"""Answers `/pages/compare`: figures of several runs, and their specs side by side."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from actstore.figures.draw_svg import draw
from trainer.errors import UnknownRunError
from trainer.service.api_files import REPORT_POLICY
from trainer.service.pages import page_figures
from trainer.service.pages.page_context import (
    PageRoute,
    answer,
    service_of,
    shared_of,
    visitor_of,
)
from trainer.service.pages.page_figures import DrawnRun, drawn_run
from trainer.service.pages.run_fields import compared_fields
from trainer.service.service import Service

MOST_COMPARED = 40
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/pages/compare", response_class=HTMLResponse)
def compare_page(request: Request) -> HTMLResponse:
    """Answer with the comparison of the runs that `run`, repeated, names."""
    visitor_of(request)
    service = service_of(request)
    asked = list(dict.fromkeys(request.query_params.getlist("run")))
    runs, missing = _drawn(service, asked[:MOST_COMPARED])
    all_fields = request.query_params.get("fields") == "all"
    fields = compared_fields([one.run.spec for one in runs]) if len(runs) > 1 else []
    figures = [page_figures.scatter(runs), page_figures.by_layer(runs)]
    drawn = [one for one in figures if one is not None] + page_figures.curves(runs)
    ids = [("run", one.run.id) for one in runs]
    return answer(
        request,
        "compare.html",
        runs=runs,
        note=_note(len(asked), missing),
        legend=page_figures.legend_of(runs).to_json(),
        drawings=[draw(figure, standalone=False) for figure in drawn],
        finished=[one.run.id for one in runs if one.run.state == "completed"],
        fields=fields,
        n_differing=sum(field.differs for field in fields),
        all_fields=all_fields,
        less=f"/pages/compare?{urlencode(ids)}",
        more=f"/pages/compare?{urlencode([*ids, ('fields', 'all')])}",
    )


@router.get("/pages/report")
async def report_page(request: Request) -> Response:
    """Answer with the report of the runs that `run`, repeated, names."""
    visitor_of(request)
    shared = shared_of(request)
    ids = list(dict.fromkeys(request.query_params.getlist("run")))
    page = await shared.pools.report(shared.service.report, ids)
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")


def _drawn(service: Service, ids: list[str]) -> tuple[list[DrawnRun], int]:
    """Return the runs of some ids, and how many ids are of none."""
    runs = []
    missing = 0
    for run_id in ids:
        try:
            run = service.run(run_id)
        except UnknownRunError:
            missing += 1
            continue
        steps = service.journal(run_id)
        runs.append(drawn_run(run, steps, service.evaluation(run_id)))
    return page_figures.told_apart(runs), missing


def _note(n_asked: int, missing: int) -> str:
    """Return what the page leaves out, in words."""
    notes = []
    if n_asked > MOST_COMPARED:
        notes.append(f"The first {MOST_COMPARED} of {n_asked} runs are compared.")
    if missing:
        notes.append(f"{missing} of the runs are not known here.")
    return " ".join(notes)
