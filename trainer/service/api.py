"""The API's routes of runs: submitting, listing, and what becomes of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response, Security
from pydantic import TypeAdapter

from schemas.records import EvalRecord, StepRecord
from schemas.service import (
    Estimate,
    Publication,
    RunPage,
    RunState,
    ServiceRun,
    Submission,
)
from trainer.service.api_answers import Reader, Shared, Submitter, bearer, problems
from trainer.service.problems import JSON

MOST_IN_PAGE = 200
_RUNS: TypeAdapter[list[ServiceRun]] = TypeAdapter(list[ServiceRun])
Filter = Annotated[str | None, Query(max_length=200)]
api = APIRouter(tags=["runs"], dependencies=[Security(bearer)])


@api.post(
    "/runs",
    status_code=201,
    response_model=list[ServiceRun],
    responses={
        200: {"model": Estimate, "description": "What a dry run would take"},
        **problems(408, 409, 413),
    },
)
async def submit(
    submission: Submission,
    shared: Shared,
    user: Submitter,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, pattern=r"^[!-~]+$")
    ] = None,
) -> Response:
    """Submit a run or a sweep.

    The same `Idempotency-Key` with the same body gives the same runs again.
    """
    if submission.dry_run:
        estimate = await shared.pools.slow(shared.service.estimate, submission)
        return Response(estimate.model_dump_json(), 200, media_type=JSON)
    runs = await shared.pools.slow(
        shared.service.submit, submission, user, idempotency_key
    )
    shared.answers.forget()
    return Response(_RUNS.dump_json(runs), 201, media_type=JSON)


@api.get("/runs", response_model=RunPage, responses=problems(404))
async def runs(
    shared: Shared,
    user: Reader,  # noqa: ARG001
    state: Annotated[list[RunState] | None, Query()] = None,
    of_user: Annotated[str | None, Query(alias="user", max_length=100)] = None,
    sweep: Filter = None,
    text: Filter = None,
    after: Annotated[str | None, Query(max_length=40)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_IN_PAGE)] = 50,
) -> Response:
    """List runs, newest first."""
    states = None if not state else tuple(dict.fromkeys(state))
    asked = (states, of_user, sweep, text, after, limit)

    def page() -> bytes:
        return shared.service.runs(*asked).model_dump_json().encode()

    data = await shared.answers.get(("runs", *asked), lambda: shared.pools.quick(page))
    return Response(data, media_type=JSON)


@api.get("/runs/{run_id}", response_model=ServiceRun, responses=problems(404))
async def run(run_id: str, shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """Tell of a run."""

    def found() -> bytes:
        return shared.service.run(run_id).model_dump_json().encode()

    data = await shared.answers.get(("run", run_id), lambda: shared.pools.quick(found))
    return Response(data, media_type=JSON)


@api.get(
    "/runs/{run_id}/journal",
    response_model=list[StepRecord],
    responses=problems(404),
)
async def journal(
    run_id: str,
    shared: Shared,
    user: Reader,  # noqa: ARG001
    after_step: Annotated[int, Query(ge=-1, le=1 << 53)] = -1,
) -> Response:
    """Give the records of a run's journal behind a step."""

    def found() -> bytes:
        return shared.service.journal_json(run_id, after_step)

    key = ("journal", run_id, after_step)
    data = await shared.answers.get(key, lambda: shared.pools.quick(found))
    return Response(data, media_type=JSON)


@api.get(
    "/runs/{run_id}/evaluation",
    response_model=EvalRecord | None,
    responses=problems(404),
)
async def evaluation(run_id: str, shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """Tell how good a run's SAE is; null where it was not evaluated yet."""
    found = await shared.pools.quick(shared.service.evaluation, run_id)
    data = "null" if found is None else found.model_dump_json()
    return Response(data, media_type=JSON)


@api.post(
    "/runs/{run_id}/cancel", response_model=ServiceRun, responses=problems(404, 409)
)
async def cancel(run_id: str, shared: Shared, user: Submitter) -> Response:
    """Cancel a run; one that is trained is saved first, and ends soon."""
    changed = await shared.pools.quick(shared.service.cancel, run_id, user)
    shared.answers.forget()
    return Response(changed.model_dump_json(), media_type=JSON)


@api.post(
    "/runs/{run_id}/resume", response_model=ServiceRun, responses=problems(404, 409)
)
async def resume(run_id: str, shared: Shared, user: Submitter) -> Response:
    """Queue a run that was cancelled or has failed; it goes on where it was saved."""
    changed = await shared.pools.quick(shared.service.resume, run_id, user)
    shared.answers.forget()
    return Response(changed.model_dump_json(), media_type=JSON)


@api.post(
    "/runs/{run_id}/publish",
    response_model=ServiceRun,
    responses=problems(404, 408, 409, 413),
)
async def publish(
    run_id: str, publication: Publication, shared: Shared, user: Submitter
) -> Response:
    """Publish a run that has completed in the catalog, under a name."""
    changed = await shared.pools.slow(
        shared.service.publish, run_id, publication.name, user
    )
    shared.answers.forget()
    return Response(changed.model_dump_json(), media_type=JSON)
