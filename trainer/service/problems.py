"""Answers that say in words why a request was not answered as it was meant."""

from __future__ import annotations

import json
import math

from starlette.responses import Response

from actstore.errors import ActstoreError, StorageError
from trainer.errors import (
    BusyError,
    ConflictError,
    ForbiddenError,
    RunError,
    ServiceError,
    UnknownRunError,
)

JSON = "application/json"
_LONGEST = 4000  # characters of a message; the rest is left out
# The first that an error is one of counts.
_STATUS: tuple[tuple[type[ActstoreError], int], ...] = (
    (UnknownRunError, 404),
    (ForbiddenError, 403),
    (ConflictError, 409),
    (RunError, 409),
    (BusyError, 429),
    (ServiceError, 503),
    (StorageError, 503),
    (ActstoreError, 422),
)


def status_of(error: ActstoreError) -> int:
    """Return the status of the answer that tells of an error."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def problem(status: int, detail: str, retry_after_s: float | None = None) -> Response:
    """Return an answer `{"detail": ...}`.

    Args:
        status: Its status.
        detail: What to say.
        retry_after_s: When the same may be asked again, in seconds.
    """
    # Half a character that JSON let through cannot be sent as it is.
    text = detail.encode("utf-8", "backslashreplace").decode()
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="actstore"'
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return Response(json.dumps({"detail": text}), status, headers, JSON)
