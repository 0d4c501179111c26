"""What OpenAPI says of answers, and what routes ask for: who asks, and the context."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from fastapi.security import HTTPBearer

from schemas.service import Problem
from trainer.service.context import Context, context_of, reader, submitter
from trainer.service.tokens import User

_WHAT = {
    400: "The request cannot be read",
    401: "There is no token that counts",
    403: "The user may not do that",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It is in another state, or the name is taken",
    413: "The body is too large",
    422: "It cannot be used; says why, as the command line does",
    429: "Too often; `Retry-After` says when again",
    503: "The service or its storage cannot be reached now",
}
bearer = HTTPBearer(auto_error=False, description="`trainer token make` makes one")
Shared = Annotated[Context, Depends(context_of)]
Reader = Annotated[User, Depends(reader)]
Submitter = Annotated[User, Depends(submitter)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of answers that tell of a problem."""
    always = (400, 401, 403, 422, 429, 503)
    return {
        status: {"model": Problem, "description": _WHAT[status]}
        for status in sorted({*always, *statuses})
    }
