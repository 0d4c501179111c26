"""What a run's spec says of its sparsity."""

from __future__ import annotations

from typing import NamedTuple

from schemas.records import RunRecord
from schemas.sae import inner_of


class Sparsity(NamedTuple):
    """The setting that decides how many latents fire.

    Attributes:
        name: Which setting: `k`, `target_l0`, or that of a penalty.
        value: Its value; NaN where the kind has none.
    """

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:g}" if self.name else "none"


def sparsity_of(record: RunRecord) -> Sparsity:
    """Return the setting that decides a run's sparsity."""
    spec = inner_of(record.sae)
    if spec.latents_per_row is not None:
        return Sparsity("k", float(spec.latents_per_row))
    if spec.steered_l0 is not None:
        return Sparsity("target_l0", float(spec.steered_l0))
    if spec.penalty_weight is not None:
        return Sparsity(spec.penalty_field or "penalty", float(spec.penalty_weight))
    return Sparsity("", float("nan"))
