"""The web application: routes, layers around them, and answers to errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from actstore.errors import ActstoreError
from trainer.service.access import Access, RefusedError
from trainer.service.api import api
from trainer.service.api_events import event_api
from trainer.service.api_files import file_api
from trainer.service.api_service import open_api, service_api
from trainer.service.context import Context
from trainer.service.event_feed import EventFeed
from trainer.service.limits import Limits
from trainer.service.metrics import Metrics
from trainer.service.pages.pages import pages
from trainer.service.problems import problem, status_of
from trainer.service.security_headers import SecurityHeaders
from trainer.service.service import Service
from trainer.service.tokens import Tokens
from trainer.service.work_pools import Answers, WorkPools

BUSY_RETRY_S = 5.0
log = logging.getLogger("trainer.service")


def make_app(
    service: Service,
    tokens: Tokens,
    *,
    hosts: Sequence[str] | None = None,
    tls: bool = False,
) -> FastAPI:
    """Return the web application of a service.

    Args:
        service: The service.
        tokens: Who may use it.
        hosts: What `Host` may say, where the service is for this machine alone; None:
            anything.
        tls: Whether browsers reach it by TLS only: of its own, or of a proxy.
    """
    pools = WorkPools()
    feed = EventFeed(service, pools)
    metrics = Metrics()
    context = Context(
        service, Access(tokens), pools, Answers(), feed, metrics, secure_cookies=tls
    )

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await feed.close()
        pools.close()

    app = FastAPI(
        title="actstore training service",
        version=service.state().version,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.context = context
    for router in (api, event_api, file_api, service_api, open_api, pages):
        app.include_router(router)
    _handle_errors(app)
    # The one that is added last is the outermost.
    app.add_middleware(Limits, hosts=hosts)
    app.add_middleware(SecurityHeaders, metrics=metrics, tls=tls)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Answer errors with a status and a sentence."""

    @app.exception_handler(ActstoreError)
    async def _ours(_request: Request, error: ActstoreError) -> Response:
        status = status_of(error)
        if status == 503:
            log.error("%s", ascii(str(error)))
        return problem(status, str(error), BUSY_RETRY_S if status == 429 else None)

    @app.exception_handler(RefusedError)
    async def _refused(_request: Request, error: RefusedError) -> Response:
        return problem(error.status, error.detail, error.retry_after_s)

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        told = [_sentence(one) for one in error.errors()[:10]]
        return problem(422, "; ".join(told))


def _sentence(error: dict[str, Any]) -> str:
    """Return one of FastAPI's complaints as a sentence."""
    where = ".".join(str(part) for part in error["loc"][1:])
    return f"{where or 'the body'}: {error['msg']}"
