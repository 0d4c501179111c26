"""Serves the explorer of a run, from the files that `trainer explore` has made."""

from __future__ import annotations

import threading
from functools import lru_cache

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import HTMLResponse, Response

from schemas.service import ServiceRun
from trainer.explorer.explore import explorer_files
from trainer.explorer.explorer_tables import META
from trainer.explorer.latent_json import chunk_json, index_json
from trainer.explorer.page_file import page_start, served_policy
from trainer.explorer.read_explorer import Explorer
from trainer.service.pages.page_context import (
    PageRoute,
    service_of,
    visitor_of,
)

MOST_OPEN = 8
router = APIRouter(route_class=PageRoute, include_in_schema=False)
# Parquet's readers are not for several threads at once.
_lock = threading.Lock()


def has_explorer(run: ServiceRun) -> bool:
    """Return whether the explorer's files of a run are there."""
    return run.state == "completed" and explorer_files(run.url).exists(META)


@router.get("/pages/runs/{run_id}/explorer/")
def explorer_page(request: Request, run_id: str) -> Response:
    """Answer with the explorer's page, which has a policy of its own."""
    explorer = _explorer(request, run_id)
    page = page_start(explorer) + "</body>\n</html>\n"
    return HTMLResponse(page, headers={"Content-Security-Policy": served_policy()})


@router.get("/pages/runs/{run_id}/explorer/index")
def explorer_index(request: Request, run_id: str) -> Response:
    """Answer with the index of all latents."""
    explorer = _explorer(request, run_id)
    with _lock:
        return _data(index_json(explorer))


@router.get("/pages/runs/{run_id}/explorer/chunk/{number}")
def explorer_chunk(request: Request, run_id: str, number: int) -> Response:
    """Answer with some latents."""
    explorer = _explorer(request, run_id)
    if not 0 <= number < explorer.n_groups:
        raise HTTPException(404, "there are no such latents")
    with _lock:
        return _data(chunk_json(explorer, number))


def _explorer(request: Request, run_id: str) -> Explorer:
    visitor_of(request)
    run = service_of(request).run(run_id)
    if not has_explorer(run):
        raise HTTPException(
            404,
            f"{run.name} has no explorer here; `trainer explore {run.url} --no-open`"
            " makes its files",
        )
    files = explorer_files(run.url)
    changed = [one.modified for one in files.objects() if one.key == META]
    with _lock:
        return _opened(files.url, str(changed))


@lru_cache(maxsize=MOST_OPEN)
def _opened(url: str, _changed: str) -> Explorer:
    """Return an explorer, opened again once its files were made again."""
    return Explorer(url)


def _data(data: bytes) -> Response:
    return Response(data, media_type="application/octet-stream")
