"""Answers `/login` and `/logout`: a token opens a session, which a cookie keeps."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse
from starlette.responses import Response

from trainer.service.access import RefusedError
from trainer.service.pages.page_context import (
    CheckedForm,
    PageRoute,
    PlainForm,
    access_of,
    answer,
    own_address,
    see_other,
    shared_of,
    visitor_or_none,
)
from trainer.service.sessions import COOKIE, LASTS_S

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/login", response_class=HTMLResponse)
def login_page(request: Request) -> Response:
    """Answer with the form for a token; a link's own is put in by the page's script."""
    after = own_address(request.query_params.get("next", "/"))
    return answer(request, "login.html", next=after, wrong="")


@router.post("/login")
def log_in(request: Request, form: PlainForm) -> Response:
    """Open a session, and lead to where the visitor wanted to go."""
    check_own_page(request)
    after = own_address(form.get("next", ["/"])[0])
    token = form.get("token", [""])[0].strip()
    try:
        cookie, _ = access_of(request).log_in(request, token)
    except RefusedError as error:
        wrong = error.detail
        return answer(
            request, "login.html", status=error.status, next=after, wrong=wrong
        )
    led = see_other(after)
    led.set_cookie(
        COOKIE,
        cookie,
        max_age=LASTS_S,
        httponly=True,
        samesite="strict",
        secure=shared_of(request).secure_cookies,
    )
    return led


@router.post("/logout")
def log_out(request: Request, _form: CheckedForm) -> Response:
    """End the session."""
    cookie = request.cookies.get(COOKIE)
    if visitor_or_none(request) is not None and cookie is not None:
        access_of(request).sessions.end(cookie)
    led = see_other("/login")
    led.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return led


def check_own_page(request: Request) -> None:
    """Check that a login comes from this service's own page.

    There is no session yet whose token could show it. Another page could log a visitor
    in as somebody else.

    Raises:
        HTTPException: It comes from elsewhere.
    """
    site = request.headers.get("sec-fetch-site")
    if site is None:
        # an older browser; the page's own forms send no origin, since it says so
        is_own = request.headers.get("origin", "null") == "null"
    else:
        is_own = site in {"same-origin", "none"}
    if not is_own:
        raise HTTPException(403, "log in on this service's own page")
