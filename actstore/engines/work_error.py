"""Errors of a worker, as they cross to the driver and are raised there again."""

from __future__ import annotations

from importlib import import_module

from actstore.errors import ActstoreError, EngineError, first_line
from schemas.engines import WorkError

# The modules that have errors of ours: no other is imported on a worker's word.
OURS = ("actstore.errors", "trainer.errors")


def work_error(error: BaseException) -> WorkError:
    """Return an error as it crosses to the driver.

    One of ours is the user's to mend, and doing the work again would give it again.
    """
    kind = type(error)
    if isinstance(error, ActstoreError):
        return WorkError(
            kind=kind.__name__,
            module=kind.__module__,
            text=str(error),
            is_users=True,
        )
    line = first_line(error) if isinstance(error, Exception) else ""
    return WorkError(
        kind="EngineError",
        module=OURS[0],
        text=f"{kind.__name__}: {line}" if line != kind.__name__ else line,
        is_users=False,
    )


def as_raised(error: WorkError) -> ActstoreError:
    """Return the error that a worker had, as it would be without an engine."""
    found = EngineError
    if error.module in OURS:
        found = getattr(import_module(error.module), error.kind, EngineError)
    if not (isinstance(found, type) and issubclass(found, ActstoreError)):
        found = EngineError
    return found(error.text)
