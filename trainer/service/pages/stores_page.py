"""Answers `/pages/stores`: stores to start runs from, with their norms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from actstore.figures.draw_svg import draw
from actstore.figures.page import policy
from actstore.figures.surroundings import style
from actstore.figures.table import Column, Table
from actstore.store.norms_of_sites import plot_norms
from schemas.service import SiteNorms
from trainer.service.pages.page_context import (
    PageRoute,
    answer,
    service_of,
    visitor_of,
)

MOST_FIGURES = 256
KEPT_S = 300  # by the browser: a store's norms change when it grows
_FIGURES = ("mean", "low", "median", "high", "max")
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/pages/stores", response_class=HTMLResponse)
def stores_page(request: Request) -> HTMLResponse:
    """Answer with all stores."""
    visitor_of(request)
    return answer(request, "stores.html", stores=service_of(request).stores())


@router.get("/pages/norms")
def norms_figure(request: Request, store: str) -> Response:
    """Answer with the figure of a store's norms by layer, as SVG."""
    visitor_of(request)
    norms = service_of(request).store_norms(store)
    headers = {
        "Content-Security-Policy": policy(style(), ""),
        "Cache-Control": f"private, max-age={KEPT_S}",
    }
    return Response(
        norms_svg(tuple(norms)), media_type="image/svg+xml", headers=headers
    )


@lru_cache(maxsize=MOST_FIGURES)
def norms_svg(norms: tuple[SiteNorms, ...]) -> str:
    """Return the figure of the norms of a store's sites."""
    table = Table(
        name="norms",
        title="Norm by layer",
        text="",
        columns=(
            Column("site", [one.site for one in norms]),
            Column("layer", [one.layer for one in norms]),
            *(
                Column(name, np.array([getattr(one, name) for one in norms]))
                for name in _FIGURES
            ),
        ),
    )
    (figure,) = plot_norms(table)
    return draw(figure)
