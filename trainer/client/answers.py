"""Reads the service's answers: as schemas, or as the error that they stand for.

A newer service may say more than this client knows. What it adds is passed over, so
that an older client goes on working; a value that this client cannot understand is an
error that says so.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from actstore.console.printable import shortened
from actstore.errors import SpecError
from trainer.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    ServiceError,
    TokenError,
    UnknownRunError,
    UnreachableError,
)

Kind = TypeVar("Kind")
SHOWN = 2000  # characters of a message of the service that are repeated
_ERRORS: dict[int, type[Exception]] = {
    400: SpecError,
    401: TokenError,
    403: ForbiddenError,
    404: UnknownRunError,
    409: ConflictError,
    413: SpecError,
    422: SpecError,
    429: BusyError,
    503: BusyError,
}


class Answer(NamedTuple):
    """An answer of the service.

    Attributes:
        status: Its status.
        headers: Its headers.
        data: Its body, or the beginning of one that is streamed.
        url: What was asked, without the token, which is in a header.
    """

    status: int
    headers: httpx.Headers
    data: bytes
    url: str


def as_schema(kind: Any, answer: Answer) -> Any:
    """Return what an answer holds.

    Args:
        kind: The type that it holds: a schema, or a list of one.
        answer: The answer.

    Raises:
        UnreachableError: It holds something else.
    """
    return _read(kind, _json(answer), answer.url)


def of_text(kind: type[Kind], text: str, where: str) -> Kind:
    """Return the schema that a JSON text of the service holds.

    Raises:
        UnreachableError: It holds something else.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UnreachableError(f"{where}: what came is no JSON") from None
    found: Kind = _read(kind, values, where)
    return found


def refuse(answer: Answer) -> NoReturn:
    """Raise the error that an answer stands for, with the service's own words."""
    detail = _detail(answer)
    if 300 <= answer.status < 400:
        place = shortened(answer.headers.get("location", "nowhere"), SHOWN)
        raise UnreachableError(
            f"{answer.url}: it leads on to {place}, where a token is not sent; give the"
            " service's own URL"
        )
    if detail is None:
        raise UnreachableError(_something_else(answer, f"status {answer.status}"))
    kind = _ERRORS.get(answer.status, ServiceError)
    raise kind(detail)


def _detail(answer: Answer) -> str | None:
    """Return the message of an answer that is the service's; None of any other."""
    try:
        values = json.loads(answer.data)
    except (ValueError, RecursionError):
        return None
    detail = values.get("detail") if isinstance(values, dict) else None
    return shortened(detail, SHOWN) if isinstance(detail, str) else None


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.data)
    except (ValueError, RecursionError):
        raise UnreachableError(_something_else(answer, "no JSON")) from None


def kind_of(headers: httpx.Headers) -> str:
    """Return in words what kind of body comes."""
    kind = headers.get("content-type", "").partition(";")[0].strip()
    if kind == "text/html":
        return "a web page"
    return shortened(kind, 60) or "nothing known"


def _something_else(answer: Answer, what: str) -> str:
    return (
        f"{answer.url}: what answers is no training service ({what},"
        f" {kind_of(answer.headers)}); check the URL (`trainer serve` prints it)"
    )


def _read(kind: Any, values: Any, where: str) -> Any:
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(values, strict=False)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
    # Only what is unknown is taken out, and only where nothing else is wrong.
    if all(problem["type"] == "extra_forbidden" for problem in problems):
        for problem in problems:
            _take_out(values, problem["loc"])
        try:
            return adapter.validate_python(values)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    path = ".".join(map(str, first["loc"])) or "the whole"
    raise UnreachableError(
        f"{where}: the answer is not one that this version of actstore understands"
        f" ({shortened(path, 200)}: {first['msg']}); the service may be newer: compare"
        " `actstore --version` with what it says at /state"
    )


def _take_out(values: Any, path: tuple[int | str, ...]) -> None:
    """Remove what lies at a path; parts that name an alternative are passed over."""
    *above, last = path
    for part in above:
        if isinstance(values, dict):
            values = values.get(part, values)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
    if isinstance(values, dict):
        values.pop(last, None)
