"""Answers `/pages/runs/{id}`: one run, its curves, its spec, its files."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from actstore.errors import ActstoreError
from actstore.figures.draw_svg import draw
from actstore.validation import validated_json
from schemas.catalog import LONGEST_NAME
from schemas.records import MachineRecord
from schemas.service import RunEvent, ServiceRun
from trainer.errors import UnknownRunError
from trainer.service.pages.page_context import (
    CheckedForm,
    PageRoute,
    Visitor,
    answer,
    see_other,
    service_of,
    submitter_of,
    visitor_of,
)
from trainer.service.pages.page_figures import by_layer, drawn_run
from trainer.service.pages.run_explorer import has_explorer
from trainer.service.service import Service

MOST_EVENTS = 200  # of the newest
MOST_MACHINE_BYTES = 100_000
MOST_SHARING = 8
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/pages/runs/{run_id}", response_class=HTMLResponse)
def run_page(request: Request, run_id: str) -> HTMLResponse:
    """Answer with the whole page."""
    visitor = visitor_of(request)
    service = service_of(request)
    run = service.run(run_id)
    values = {**_now(service, visitor, run), **_more(service, run)}
    return answer(request, "run.html", run=run, here="", **values)


@router.get("/pages/runs/{run_id}/now", response_class=HTMLResponse)
def run_now(request: Request, run_id: str) -> HTMLResponse:
    """Answer with the part that changes with each step."""
    visitor = visitor_of(request)
    service = service_of(request)
    run = service.run(run_id)
    return answer(request, "run_now.html", run=run, **_now(service, visitor, run))


@router.get("/pages/runs/{run_id}/more", response_class=HTMLResponse)
def run_more(request: Request, run_id: str) -> HTMLResponse:
    """Answer with the part that changes now and then: layers, events, files."""
    visitor_of(request)
    service = service_of(request)
    run = service.run(run_id)
    return answer(request, "run_more.html", run=run, **_more(service, run))


@router.post("/pages/runs/{run_id}/{action}")
def run_action(
    request: Request, run_id: str, action: str, form: CheckedForm
) -> Response:
    """Cancel, resume or publish a run, and lead back to it."""
    service = service_of(request)
    user = submitter_of(request)
    match action:
        case "cancel":
            service.cancel(run_id, user)
        case "resume":
            service.resume(run_id, user)
        case "publish":
            service.publish(run_id, form.get("name", [""])[0].strip(), user)
        case _:
            raise UnknownRunError(f"there is nothing called {action!r} to do")
    return see_other(f"/pages/runs/{run_id}")


def _now(service: Service, visitor: Visitor, run: ServiceRun) -> dict[str, Any]:
    """Return what the first part of the page shows."""
    may = visitor.may_change(run)
    sharing = run.shares_with[:MOST_SHARING]
    finished = run.state == "completed"
    cancelling = service.queue.run(run.id).cancelling
    may_cancel = may and run.state in {"queued", "running"} and not cancelling
    has_catalog = service.places.catalog is not None
    return {
        "cancelling": cancelling,
        "actions": [
            ("cancel", "Cancel", may_cancel),
            ("resume", "Resume", may and run.state in {"cancelled", "failed"}),
        ],
        "finished": finished,
        "has_explorer": has_explorer(run),
        "may_publish": may and finished and has_catalog and not run.published,
        "names": {other: service.run(other).name for other in sharing},
        "longest_name": LONGEST_NAME,
        "proposed": _proposed_name(run),
    }


def _more(service: Service, run: ServiceRun) -> dict[str, Any]:
    """Return what the second part of the page shows."""
    evaluation = service.evaluation(run.id)
    drawn = drawn_run(run, service.journal(run.id), evaluation)
    figure = by_layer([drawn])
    rows = "held-out rows" if drawn.held_out else "rows of training, as they come"
    artifacts = service.artifacts(run.id)
    keys = {artifact.key for artifact in artifacts}
    return {
        "finished": run.state == "completed",
        "has_explorer": has_explorer(run),
        "layers": None if figure is None else draw(figure, standalone=False),
        "layers_text": f"FVU at each site, on {rows}.",
        "evaluation": evaluation,
        "events": last_events(service, run.id),
        "machine": _machine(service, run.id) if "machine.json" in keys else "",
        "artifacts": artifacts,
    }


def last_events(service: Service, run_id: str) -> list[RunEvent]:
    """Return the newest events of a run but its progress, the newest first."""
    found: list[RunEvent] = []
    after = 0
    while events := service.events(run=run_id, after=after):
        found += [event for event in events if event.kind != "progress"]
        after = events[-1].id
    return found[: -MOST_EVENTS - 1 : -1]


def _machine(service: Service, run_id: str) -> str:
    """Return in a sentence where a run was trained; empty where that is not known."""
    try:
        opened = service.artifact(run_id, "machine.json")
        if opened.artifact.bytes > MOST_MACHINE_BYTES:
            return ""
        data = b"".join(opened.parts)
        return validated_json(MachineRecord, data, "machine.json").sentence()
    except ActstoreError:
        return ""


def _proposed_name(run: ServiceRun) -> str:
    """Return a name for the catalog, made of the run's own."""
    letters = [c if c.isascii() and c.isalnum() else "-" for c in run.name]
    words = [word for word in "".join(letters).split("-") if word]
    return "-".join(words)[:LONGEST_NAME].strip("-")
