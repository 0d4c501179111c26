"""The part that all ways to share work among several processes have in common."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.distributed.processes import World
from trainer.kernels.select_across_processes import largest_of_all


class SeveralProcesses:
    """The processes, and what they find out together."""

    def __init__(self, world: World) -> None:
        self.world = world

    def agreed(self, good: bool) -> bool:
        # the smallest of 1 and 0 is 0 where any process says no
        return self.world.least(float(good)) > 0

    def nth_largest(self, values: Tensor, n: int) -> Tensor:
        """Return the n-th largest of the values [.] of all processes: a scalar."""
        smallest = self._smallest(values)
        # as positive numbers, whose bits are in their order
        positive = values - smallest + torch.finfo(torch.float32).tiny
        is_largest = largest_of_all(positive, n, self.world)
        level = self._smallest(values[is_largest])
        return values.new_tensor(level if math.isfinite(level) else 0.0)

    def _smallest(self, values: Tensor) -> float:
        """Return the smallest of all processes' values [.]; inf where none has any."""
        here = float(values.min()) if len(values) else math.inf
        return self.world.least(here)
