"""Answers `/pages/new`: the form that starts a run, and what it would take."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from actstore.errors import ActstoreError
from schemas.sae import DEFAULT_L0, FlatKind, TopK, fields_of_sparsity
from schemas.service import ServiceStore, Submission
from schemas.stream import Rescale, StreamSpec
from schemas.train import TrainSpec
from trainer.service.pages.new_run_form import (
    NewRunForm,
    empty_form,
    errors_by_field,
    form_like,
    sent_form,
    submission_of,
)
from trainer.service.pages.page_context import (
    CheckedForm,
    PageRoute,
    answer,
    see_other,
    service_of,
    submitter_of,
)

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/pages/new", response_class=HTMLResponse)
def new_run_page(request: Request) -> HTMLResponse:
    """Answer with the form: empty, for a store, or like a run."""
    submitter_of(request)
    service = service_of(request)
    like = request.query_params.get("like")
    if like is not None:
        return _shown(request, form_like(service.run(like)))
    stores = service.stores()
    first = stores[0].url if stores else ""
    return _shown(request, empty_form(request.query_params.get("store", first)))


@router.post("/pages/new", response_class=HTMLResponse)
def start_run(request: Request, sent: CheckedForm) -> Response:
    """Start what the form asks for, or show the form again."""
    user = submitter_of(request)
    form = sent_form(sent)
    action = sent.get("action", ["start"])[0]
    if action == "store":
        return _shown(request, _of_store(form, service_of(request).stores()))
    service = service_of(request)
    try:
        submission = submission_of(form)
        if action == "estimate":
            return _shown(request, form, estimate=_estimated(request, submission))
        runs = service.submit(submission, user, _sent_once(form, submission))
    except ActstoreError as error:
        return _shown(request, with_error(form, error), status=422)
    if len(runs) == 1:
        return see_other(f"/pages/runs/{runs[0].id}")
    return see_other(f"/?sweep={quote(runs[0].sweep or '')}")


@router.post("/pages/estimate", response_class=HTMLResponse)
def estimate(request: Request, sent: CheckedForm) -> HTMLResponse:
    """Answer with what the form's runs would take, or what is wrong with it."""
    submitter_of(request)
    try:
        estimated = _estimated(request, submission_of(sent_form(sent)))
    except ActstoreError as error:
        problem = str(error)
        return answer(request, "estimate.html", estimate=None, problem=problem)
    return answer(request, "estimate.html", estimate=estimated, problem="")


def with_error(form: NewRunForm, error: ActstoreError) -> NewRunForm:
    """Return a form with what is wrong at its fields, and all that was typed."""
    message = str(error)
    return NewRunForm(
        values=form.values,
        sites=form.sites,
        key=form.key,
        message=message,
        errors=errors_by_field(message, form),
    )


def _sent_once(form: NewRunForm, submission: Submission) -> str:
    """Return a key that is the same where the same form is sent twice.

    One that was changed meanwhile, after a step back in the browser, has another.
    """
    digest = hashlib.sha256(submission.to_json().encode()).hexdigest()
    return f"{form.key}-{digest}"


def _estimated(request: Request, submission: Submission) -> Any:
    return service_of(request).estimate(submission)


def _shown(
    request: Request, form: NewRunForm, *, estimate: Any = None, status: int = 200
) -> HTMLResponse:
    """Answer with the form."""
    stores = service_of(request).stores()
    return answer(
        request,
        "new.html",
        status=status,
        here="/pages/new",
        form=form,
        stores=stores,
        sites=_sites(stores, form),
        choices=_choices(form),
        defaults=_defaults(),
        hints=_hints(),
        l0_hint=_l0_hint(),
        estimate=estimate,
        problem="",
    )


def _of_store(form: NewRunForm, stores: list[ServiceStore]) -> NewRunForm:
    """Return a form without the ticks at sites that only other stores have."""
    wanted = form.values["store"]
    here = {site for store in stores if store.url == wanted for site in store.sites}
    others = {site for store in stores for site in store.sites} - here
    return replace(form, sites=tuple(site for site in form.sites if site not in others))


def _sites(stores: list[ServiceStore], form: NewRunForm) -> list[str]:
    """Return the sites to choose from: those of the form's store, and those ticked."""
    wanted = form.values["store"]
    of_store = next((store.sites for store in stores if store.url == wanted), [])
    return list(dict.fromkeys([*of_store, *form.sites]))


def _choices(form: NewRunForm) -> dict[str, list[tuple[str, str]]]:
    """Return the values of the fields that are chosen from a list, with their texts."""
    kinds = [(kind, kind) for kind in fields_of_sparsity()]
    if form.values["kind"] not in dict(kinds):
        kinds.append((form.values["kind"], form.values["kind"]))
    return {"kind": kinds, "rescale": [(name, name) for name in get_args(Rescale)]}


def _defaults() -> dict[str, str]:
    """Return what holds where a field is left empty."""
    return {
        "batch": f"{StreamSpec.model_fields['batch'].default:,}",
        "expansion": f"{FlatKind.model_fields['expansion'].default:g}",
        "l0": f"{TopK.model_fields['k'].default}",
        "priority": f"{Submission.model_fields['priority'].default}",
        "seed": f"{TrainSpec.model_fields['seed'].default}",
    }


def _hints() -> dict[str, str]:
    """Return what the fields are, in the schemas' words."""
    return {
        "batch": StreamSpec.model_fields["batch"].description or "",
        "expansion": FlatKind.model_fields["expansion"].description or "",
        "priority": Submission.model_fields["priority"].description or "",
        "rescale": StreamSpec.model_fields["rescale"].description or "",
        "seed": TrainSpec.model_fields["seed"].description or "",
    }


def _l0_hint() -> str:
    """Return what the number of active latents is, for each kind."""
    keeping = [kind for kind, names in fields_of_sparsity().items() if "k" in names]
    return (
        f"k of {', '.join(keeping)}; of other kinds the L0 that the penalty is steered"
        f" to ({DEFAULT_L0:g})"
    )
