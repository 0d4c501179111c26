"""Prints the warnings of a stream as notes, one line each, while training is shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.runs.notes import on_console

if TYPE_CHECKING:
    from schemas.train import TrainSpec


@contextmanager
def notes_on(console: Any) -> Iterator[None]:
    """Inside the `with`, print StreamWarnings as they come.

    Python would print two lines for each, and through a progress bar. Other warnings go
    their usual way.

    Args:
        console: A rich Console.
    """
    from actstore.stream.stream import StreamWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", StreamWarning)
        usual = warnings.showwarning

        def show(
            message: Any,
            category: type[Warning],
            *where: Any,
            **more: Any,
        ) -> None:
            if issubclass(category, StreamWarning):
                on_console(console, str(message))
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show  # catch_warnings puts the usual one back
        yield


def say_if_slow(console: Any, specs: Iterable[TrainSpec], device: str) -> None:
    """Print a note where a run wants bfloat16 on a device that is faster with float32.

    The run is trained as its spec says.
    """
    from actstore.machine.half_precision import slow_here

    wanted = {spec.precision for spec in specs} - {"float32"}
    for precision in sorted(wanted):
        slow = slow_here(precision, device)
        if slow is not None:
            on_console(console, f"precision {precision}: {slow}")
