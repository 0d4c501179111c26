"""What a user is told, as one line each on the console: of a stream's warnings, instead
of Python's own two.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.train import TrainSpec


@contextmanager
def notes_on(console: Any) -> Iterator[None]:
    """Inside, StreamWarnings are printed as they come; other warnings go their usual
    way. console: a rich Console.
    """
    from actstore.stream.stream import StreamWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", StreamWarning)
        usual = warnings.showwarning

        def show(
            message: Any, category: type[Warning], *where: Any, **more: Any
        ) -> None:
            if issubclass(category, StreamWarning):
                _note(console, str(message))
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show  # catch_warnings puts the usual one back
        yield


def say_if_slow(console: Any, specs: Iterable[TrainSpec], device: str) -> None:
    """A note where some run wants bfloat16 and float32 is faster; it is trained as
    told.
    """
    from actstore.machine.half_precision import slow_here

    wanted = {spec.precision for spec in specs} - {"float32"}
    for precision in sorted(wanted):
        slow = slow_here(precision, device)
        if slow is not None:
            _note(console, f"precision {precision}: {slow}")


def _note(console: Any, text: str) -> None:
    console.print(f"[yellow]note[/]: {text}", highlight=False, soft_wrap=True)
