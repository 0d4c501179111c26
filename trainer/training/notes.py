"""What a stream has to tell a user, as one line each on the console instead of Python's own two."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def notes_on(console: Any) -> Iterator[None]:
    """Inside, StreamWarnings are printed as they come; other warnings go their usual way. console: a rich Console."""
    from actstore.stream.batches import StreamWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", StreamWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, StreamWarning):
                console.print(f"[yellow]note[/]: {message}", highlight=False, soft_wrap=True)
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show  # catch_warnings puts the usual one back
        yield
