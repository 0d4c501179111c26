"""Answers `/`: the devices, the runs that are trained now, and the list of all runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from schemas.service import RunCurves, RunPage, RunState, ServiceState
from trainer.service.pages.compare_page import MOST_COMPARED
from trainer.service.pages.page_context import (
    PageRoute,
    answer,
    is_part,
    service_of,
    visitor_of,
)
from trainer.service.pages.run_curves import curves_of
from trainer.service.service import Service

PAGE_RUNS = 50
MOST_CHARTED = 8  # runs whose curves are drawn while they are trained
LONGEST_TEXT = 200
_STEP = re.compile("-1|[0-9]{1,18}")
STATES: tuple[RunState, ...] = get_args(RunState)
router = APIRouter(route_class=PageRoute, include_in_schema=False)


class Chosen(NamedTuple):
    """The filter of the list, and where in it the page begins.

    Attributes:
        state: Only runs in this state; empty: in any.
        text: Only runs with this in their names.
        user: Only this user's.
        sweep: Only this sweep's.
        after: The run that the page begins after; empty: at the newest.
        before: The run that the page ends before; empty: it begins after the other.
        first: The number of its first run, as it was when the page was asked for.
    """

    state: RunState | Literal[""]
    text: str
    user: str
    sweep: str
    after: str
    before: str
    first: int

    def address(self, **changes: Any) -> str:
        """Return the address of the list with another choice."""
        fields = {**self._asdict(), **changes}
        if fields["first"] == 1:
            fields["first"] = ""
        query = urlencode({name: value for name, value in fields.items() if value})
        return f"/?{query}" if query else "/"


def chosen(query: Mapping[str, str]) -> Chosen:
    """Return what a page's address asks for; what makes no sense asks for nothing."""
    texts = {
        name: query.get(name, "").strip()[:LONGEST_TEXT]
        for name in ("text", "user", "sweep", "after", "before")
    }
    states = [state for state in STATES if state == query.get("state")]
    first = query.get("first", "1")
    return Chosen(
        state=states[0] if states else "",
        first=int(first) if first.isdecimal() and len(first) < 10 else 1,
        **texts,
    )


@router.get("/", response_class=HTMLResponse)
def runs_page(request: Request) -> HTMLResponse:
    """Answer with the whole page, or with its part that lives."""
    visitor_of(request)
    template = "runs_live.html" if is_part(request) else "runs.html"
    values = _live(service_of(request), chosen(request.query_params))
    return answer(request, template, **values)


@router.get("/pages/curves")
def runs_curves(request: Request) -> list[RunCurves]:
    """Answer with the curves of some runs, or what came to them after a step.

    `run` may be repeated; `after` stands beside each, -1 for all of its points.
    """
    visitor_of(request)
    query = request.query_params
    ids = query.getlist("run")[:MOST_CHARTED]
    known = query.getlist("after")[:MOST_CHARTED]
    if (known and len(known) != len(ids)) or not all(map(_STEP.fullmatch, known)):
        raise HTTPException(422, "after: wanted a step for each run")
    after = [int(text) for text in known] or [-1] * len(ids)
    service = service_of(request)
    return [
        curves_of(service.run(run_id), service.journal(run_id), step)
        for run_id, step in zip(ids, after, strict=True)
    ]


def _live(service: Service, choice: Chosen) -> dict[str, Any]:
    """Return what the living part of the page shows."""
    state = service.state()
    page = _page(service, choice)
    if choice.before and len(page.runs) < PAGE_RUNS:
        # so few are newer: the first page has them all
        choice = choice._replace(before="", after="", first=1)
        page = _page(service, choice)
    on_slot = {
        slot.name: [service.run(run_id) for run_id in slot.runs[:MOST_CHARTED]]
        for slot in state.slots
    }
    training = [run for runs in on_slot.values() for run in runs]
    older = choice.address(
        after=page.next, before="", first=choice.first + len(page.runs)
    )
    newer = choice.address(
        before=page.runs[0].id if page.runs else "",
        after="",
        first=max(1, choice.first - PAGE_RUNS),
    )
    return {
        "state": state,
        "page": page,
        "on_slot": on_slot,
        "charted": [run for run in training if run.progress][:MOST_CHARTED],
        "chosen": choice,
        "address": choice.address(),
        "tab": _tab(choice),
        "first": choice.first,
        "newest": choice.address(after="", before="", first=1),
        "newer": newer,
        "older": older if page.next else None,
        "everything": sum(state.counts.values()),
        "summary": summary(state),
        "most_compared": MOST_COMPARED,
    }


def _page(service: Service, choice: Chosen) -> RunPage:
    return service.runs(
        states=(choice.state,) if choice.state else None,
        user=choice.user or None,
        sweep=choice.sweep or None,
        text=choice.text or None,
        after=choice.after or None,
        limit=PAGE_RUNS,
        before=choice.before or None,
    )


def summary(state: ServiceState) -> str:
    """Return the numbers of runs in a sentence, for those who cannot see the page."""
    parts = [f"{number} {name}" for name, number in state.counts.items() if number]
    return ", ".join(parts) or "no runs"


def _tab(choice: Chosen) -> Any:
    def tab(state: str, *, bare: bool = False) -> str:
        """Return the address of the list of a state, with or without the filter."""
        changes: dict[str, Any] = {
            "state": state,
            "after": "",
            "before": "",
            "first": 1,
        }
        if bare:
            changes |= {"text": "", "user": "", "sweep": ""}
        return choice.address(**changes)

    return tab
