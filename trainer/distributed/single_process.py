"""One process that trains alone: the answers to what a learner asks of several.

All rows and all latents are here, and nothing is exchanged.
"""

from __future__ import annotations

from torch import Tensor

from trainer.distributed.undivided import WholeBatch, WholeDictionary
from trainer.distributed.world_of_one import ONE_WORLD
from trainer.saes.dictionary_parts import ONE_PART, Parts


class SingleProcess(WholeBatch, WholeDictionary):
    """The process itself; it satisfies `Parallel`."""

    world = ONE_WORLD
    parts: Parts = ONE_PART

    def agreed(self, good: bool) -> bool:
        return good

    def nth_largest(self, values: Tensor, n: int) -> Tensor:
        n = min(n, len(values))
        if not n:
            return values.new_zeros(())
        return values.sort(descending=True).values[n - 1]


SINGLE_PROCESS = SingleProcess()
