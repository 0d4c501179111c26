"""The progress of a harvest or an import, as it is told to whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """The progress of one worker.

    Attributes:
        stage: What it does now, in words: `loading the model`, `harvesting`.
        tokens: Tokens that are done, from the store's beginning on.
        n_tokens: Tokens of this worker's share; 0 while that is not known.
        units: Units of this worker's that are committed.
        n_units: Units of this worker's share.
        in_flight: Units whose rows have all come, but which are not committed yet.
        resumed: How many of `tokens` were done by earlier calls.
        bytes: Bytes that this call has written.
    """

    stage: str
    tokens: int = 0
    n_tokens: int = 0
    units: int = 0
    n_units: int = 0
    in_flight: int = 0
    resumed: int = 0
    bytes: int = 0


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
