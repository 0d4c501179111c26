"""The API's routes of what a run has written: its report, and its files."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

from fastapi import APIRouter, Response, Security
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

from schemas.service import Artifact
from trainer.errors import UnknownRunError
from trainer.service.api_answers import Reader, Shared, bearer, problems
from trainer.service.context import Context
from trainer.service.problems import JSON

# A report has scripts of its own: it is shown as if it were from nowhere, where it can
# neither ask this service for anything nor see its cookies.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
ARTIFACT_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
_ARTIFACTS: TypeAdapter[list[Artifact]] = TypeAdapter(list[Artifact])
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]")
file_api = APIRouter(tags=["runs"], dependencies=[Security(bearer)])


@file_api.get(
    "/runs/{run_id}/report",
    response_class=Response,
    responses={
        200: {"content": {"text/html": {"schema": {"type": "string"}}}},
        **problems(404, 409),
    },
)
async def report(run_id: str, shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """Give the report of a run that has completed; the first time it takes long."""
    page = await shared.pools.report(shared.service.report, run_id)
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")


@file_api.get(
    "/runs/{run_id}/artifacts",
    response_model=list[Artifact],
    responses=problems(404),
)
async def artifacts(run_id: str, shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """List the files of a run's folder."""
    found = await shared.pools.slow(shared.service.artifacts, run_id)
    return Response(_ARTIFACTS.dump_json(found), media_type=JSON)


@file_api.get(
    "/runs/{run_id}/artifacts/{key:path}",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The file",
            "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(404),
    },
)
async def artifact(run_id: str, key: str, shared: Shared, user: Reader) -> Response:  # noqa: ARG001
    """Give a file of a run's folder, by a key of the list."""
    if not key:
        raise UnknownRunError("which artifact? the list has their keys")
    found = await shared.pools.slow(shared.service.artifact, run_id, key)
    name = _NOT_IN_NAME.sub("_", key.rpartition("/")[2])
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Content-Length": str(found.artifact.bytes),
        "Content-Security-Policy": ARTIFACT_POLICY,
    }
    parts = _in_thread(shared, found.parts)
    kind = found.artifact.content_type
    return StreamingResponse(parts, headers=headers, media_type=kind)


async def _in_thread(shared: Context, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what an iterator gives, each piece read by a thread."""
    while (part := await shared.pools.quick(next, parts, None)) is not None:
        yield part
