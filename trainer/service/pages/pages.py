"""The pages of the service, as one router that its app includes.

Every page is made here, from templates, and is whole without a script; the script adds
what lives: curves, progress, the estimate while a form is filled in.
"""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from starlette.responses import Response

from trainer.service.pages import (
    compare_page,
    login_page,
    new_run_page,
    run_explorer,
    run_page,
    runs_page,
    stores_page,
)
from trainer.service.pages.static_files import static_files

FOR_EVER = "public, max-age=31536000, immutable"
pages = APIRouter(include_in_schema=False)
for module in (
    compare_page,
    login_page,
    new_run_page,
    run_explorer,
    run_page,
    runs_page,
    stores_page,
):
    pages.include_router(module.router)


@pages.get("/static/{name}")
def static_file(name: str, v: str = "") -> Response:
    """Answer with a style sheet or a script: one of a few, and no file's path."""
    file = static_files().get(name)
    if file is None:
        raise HTTPException(404, "there is nothing of this name")
    kept = FOR_EVER if v == file.digest else "no-cache"
    headers = {"Cache-Control": kept, "X-Content-Type-Options": "nosniff"}
    return Response(file.data, media_type=file.kind, headers=headers)
