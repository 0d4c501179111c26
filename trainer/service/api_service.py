"""The API's routes of the service itself: its stores, its state, who is logged in."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, Security
from pydantic import TypeAdapter

from actstore.errors import ActstoreError
from schemas.service import (
    Health,
    Login,
    Problem,
    ServiceState,
    ServiceStore,
    SessionInfo,
    SiteNorms,
)
from trainer.service import metrics as metrics_of
from trainer.service.api_answers import Reader, Shared, bearer, problems
from trainer.service.context import Context
from trainer.service.problems import JSON
from trainer.service.sessions import COOKIE, LASTS_S

_STORES: TypeAdapter[list[ServiceStore]] = TypeAdapter(list[ServiceStore])
_NORMS: TypeAdapter[list[SiteNorms]] = TypeAdapter(list[SiteNorms])
service_api = APIRouter(tags=["service"], dependencies=[Security(bearer)])
open_api = APIRouter(tags=["service"])
log = logging.getLogger("trainer.service")


@service_api.get("/stores", response_model=list[ServiceStore], responses=problems())
async def stores(shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """List the stores that may be trained from."""
    found = await shared.pools.slow(shared.service.stores)
    return Response(_STORES.dump_json(found), media_type=JSON)


@service_api.get("/stores/norms", response_model=list[SiteNorms], responses=problems())
async def store_norms(
    shared: Shared,
    user: Reader,  # noqa: ARG001
    url: Annotated[str, Query(max_length=1024)],
) -> Response:
    """Give the norms of a store's sites, in the order of layers."""
    found = await shared.pools.slow(shared.service.store_norms, url)
    return Response(_NORMS.dump_json(found), media_type=JSON)


@service_api.get("/state", response_model=ServiceState, responses=problems())
async def state(shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """Tell of the service as a whole: slots, and the runs in each state."""

    def found() -> bytes:
        return shared.service.state().model_dump_json().encode()

    data = await shared.answers.get("state", lambda: shared.pools.quick(found))
    return Response(data, media_type=JSON)


@service_api.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(),
    },
)
async def metrics(shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """Give figures in the text form that Prometheus reads."""
    found = await shared.pools.quick(shared.service.state)
    shared.metrics.streams.set(shared.feed.n_streams)
    return Response(shared.metrics.text(found), media_type=metrics_of.CONTENT_TYPE)


@open_api.get("/health", response_model=Health)
async def health() -> Health:
    """Tell that the service answers."""
    return Health(status="ok")


@open_api.get(
    "/ready",
    response_model=Health,
    responses={503: {"model": Health, "description": "It cannot work now"}},
)
async def ready(shared: Shared) -> Response:
    """Tell whether the queue and the runs' folder can be reached."""

    def looked() -> bytes:
        try:
            shared.service.check()
        except ActstoreError as error:
            why = ascii(str(error))
        else:
            return Health(status="ok").model_dump_json().encode()
        # Who asks is not known: the log has what is wrong.
        log.error("not ready: %s", why)
        return b""

    # Anybody may ask, as often as they like: it is looked at twice a second at most.
    data = await shared.answers.get("ready", lambda: shared.pools.ready(looked))
    if not data:
        told = Health(status="not ready", detail="the queue or the runs' folder")
        return Response(told.model_dump_json(), 503, media_type=JSON)
    return Response(data, media_type=JSON)


@service_api.get("/session", response_model=SessionInfo, responses=problems())
async def who(request: Request, shared: Shared, user: Reader) -> Response:
    """Tell who asks."""
    found = shared.access.session(request)
    csrf_token = None if found is None else found[1].csrf_token
    return _session(SessionInfo(user=user.name, role=user.role, csrf_token=csrf_token))


@open_api.post(
    "/session",
    status_code=201,
    response_model=SessionInfo,
    responses={
        status: {"model": Problem, "description": what["description"]}
        for status, what in problems(408, 413).items()
    },
)
async def log_in(request: Request, login: Login, shared: Shared) -> Response:
    """Begin a session of the page: the answer sets its cookie."""
    cookie, session = shared.access.log_in(request, login.token)
    user = shared.access.tokens.user_of_id(session.token)
    assert user is not None, "it was let in just now"
    answer = _session(
        SessionInfo(user=user.name, role=user.role, csrf_token=session.csrf_token), 201
    )
    _set_cookie(answer, shared, cookie, LASTS_S)
    return answer


@service_api.delete("/session", status_code=204, responses=problems(408, 413))
async def log_out(request: Request, shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """End the session of the page."""
    cookie = request.cookies.get(COOKIE)
    if cookie is not None:
        shared.access.sessions.end(cookie)
    answer = Response(status_code=204)
    _set_cookie(answer, shared, "", 0)
    return answer


def _session(info: SessionInfo, status: int = 200) -> Response:
    return Response(info.model_dump_json(), status, media_type=JSON)


def _set_cookie(answer: Response, shared: Context, value: str, lasts_s: int) -> None:
    """Set the page's cookie, which no script sees and no other site's page sends."""
    answer.set_cookie(
        COOKIE,
        value,
        max_age=lasts_s,
        path="/",
        secure=shared.secure_cookies,
        httponly=True,
        samesite="strict",
    )
