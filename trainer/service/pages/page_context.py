"""Knows who asks for a page, answers with one, and turns errors into pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl, quote

from fastapi import Depends, HTTPException, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from actstore.errors import ActstoreError
from schemas.service import Role, ServiceRun
from trainer.errors import ForbiddenError
from trainer.service.access import Access, RefusedError
from trainer.service.context import Context
from trainer.service.pages.page_templates import rendered
from trainer.service.problems import status_of
from trainer.service.service import Service
from trainer.service.sessions import is_csrf_token
from trainer.service.tokens import User

MOST_FIELDS = 2000  # of a form
Form = dict[str, list[str]]


class Visitor(NamedTuple):
    """Who looks at a page.

    Attributes:
        user: The name.
        role: What it may do.
        csrf: What its forms send back.
    """

    user: str
    role: Role
    csrf: str

    def may_change(self, run: ServiceRun) -> bool:
        """Return whether it may cancel, resume and publish a run."""
        is_own = self.role == "submitter" and self.user == run.user
        return is_own or self.role == "admin"


class NeedsLogin(Exception):  # noqa: N818 (no error: the visitor is led to the login)
    """Nobody is logged in."""


class PageRoute(APIRoute):
    """A route whose errors are pages; the login is where nobody is logged in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except NeedsLogin:
                return _to_login(request)
            except (ActstoreError, RefusedError, StarletteError) as error:
                return error_page(request, error)

        return answered


def shared_of(request: Request) -> Context:
    """Return what all routes of the service share."""
    context: Context = request.app.state.context
    return context


def service_of(request: Request) -> Service:
    """Return the service that a request is made to."""
    return shared_of(request).service


def access_of(request: Request) -> Access:
    """Return the door of that service."""
    return shared_of(request).access


def visitor_or_none(request: Request) -> Visitor | None:
    """Return who is logged in, if anybody is."""
    found = access_of(request).session(request)
    if found is None:
        return None
    user, session = found
    return Visitor(user.name, user.role, session.csrf_token)


def user_of(request: Request) -> User:
    """Return who is logged in, as the service knows users.

    Raises:
        NeedsLogin: Nobody is.
        RefusedError: There were too many requests.
    """
    access = access_of(request)
    found = access.session(request)
    if found is None:
        raise NeedsLogin
    access.check_rate(request, found[0])
    return found[0]


def visitor_of(request: Request) -> Visitor:
    """Return who is logged in.

    Raises:
        NeedsLogin, RefusedError: As `user_of` does.
    """
    user_of(request)
    visitor = visitor_or_none(request)
    if visitor is None:
        raise NeedsLogin
    return visitor


def submitter_of(request: Request) -> User:
    """Return who is logged in, where it may start and end runs.

    Raises:
        NeedsLogin, RefusedError: As `user_of` does.
        ForbiddenError: It may not.
    """
    user = user_of(request)
    if not user.may_submit():
        raise ForbiddenError(f"{user.name} may read only; a submitter may do this")
    return user


async def plain_form(request: Request) -> Form:
    """Return the fields of a form that was sent, each with its values."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "wanted a form of this page")
    try:
        text = (await request.body()).decode()
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise HTTPException(422, "the form cannot be read") from None
    form: Form = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    return form


async def checked_form(request: Request) -> Form:
    """Return a form that the session's own page has sent.

    Raises:
        NeedsLogin: Nobody is logged in.
        HTTPException: It lacks the session's CSRF token.
    """
    found = access_of(request).session(request)
    if found is None:
        raise NeedsLogin
    form = await plain_form(request)
    given = form.get("csrf", [""])[0]
    if not is_csrf_token(found[1], given):
        raise HTTPException(403, "this form is old; load the page again, and send it")
    return form


PlainForm = Annotated[Form, Depends(plain_form)]
CheckedForm = Annotated[Form, Depends(checked_form)]


def answer(
    request: Request, template: str, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """Return a page, or a part of one."""
    visitor = visitor_or_none(request)
    service = service_of(request)
    state = None if visitor is None else service.state()
    shared = {
        "visitor": visitor,
        "here": request.url.path,
        "version": "" if state is None else state.version,
        "runs_url": "" if state is None else state.runs_url,
        "origin": str(request.base_url).rstrip("/"),
    }
    text = rendered(template, **{**shared, **values})
    return HTMLResponse(text, status)


def see_other(address: str) -> RedirectResponse:
    """Return an answer that leads on, after a form was sent."""
    return RedirectResponse(address, 303)


def is_part(request: Request) -> bool:
    """Return whether the page's script asks for a part of a page."""
    return request.headers.get("hx-request") == "true"


def own_address(text: str) -> str:
    """Return a path of this service from what a stranger's link may say, else `/`."""
    is_own = text.startswith("/") and not text.startswith(("//", "/\\"))
    is_plain = all("!" <= letter <= "~" for letter in text)
    return text if is_own and is_plain else "/"


def error_page(request: Request, error: Exception) -> Response:
    """Return a page that says what went wrong."""
    status, message = status_and_text(error)
    titles = {403: "Not allowed", 404: "Not found", 409: "Not now", 429: "Too often"}
    return answer(
        request,
        "error.html",
        status=status,
        title=titles.get(status, "This did not work"),
        message=message,
        back="/",
        back_text="To the runs",
    )


def status_and_text(error: Exception) -> tuple[int, str]:
    """Return the status of an error, and what it says."""
    if isinstance(error, StarletteError):
        return error.status_code, str(error.detail)
    if isinstance(error, RefusedError):
        return error.status, error.detail
    if isinstance(error, ActstoreError):
        return status_of(error), str(error)
    return 500, str(error)


def _to_login(request: Request) -> Response:
    """Return an answer that leads to the login, and from there back."""
    if is_part(request):
        # htmx then loads the login as a page of its own.
        return Response(status_code=204, headers={"HX-Redirect": "/login"})
    here = request.url.path
    if request.url.query:
        here += f"?{request.url.query}"
    wanted = f"?next={quote(here)}" if request.method == "GET" and here != "/" else ""
    return see_other(f"/login{wanted}")
