"""Random draws of a training step that depend on (seed, updates so far) only, so that a
resumed run repeats them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

# rows: numbers that torch draws on a CPU depend on the draw's size unless that is a
# multiple of 16
_ALIGNED = 16
_BLOCK = 1 << 22  # numbers drawn at once


class Draws(nn.Module):
    """Counts updates, as part of the state dict but on the host: reading the count
    never waits for the device.
    """

    def __init__(self, seed: int, stage: int) -> None:
        super().__init__()
        self.seed, self.stage, self.updates = seed, stage, 0

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator for this update: the same however often it is asked for."""
        key = np.random.SeedSequence(
            [self.seed, self.stage, self.updates, 0]
        ).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(key[0] >> np.uint64(1)))

    def normal(
        self,
        like: Tensor,
        batch_position: Tensor | None,
        latents: tuple[int, int] | None = None,
    ) -> Tensor:
        """N(0, 1) of the shape [B, n] of `like`, by the batch_position of each row in
        the whole batch and by latent.

        batch_position: int64 [B], ascending, on the host; None: 0 to B - 1. latents:
        the first of these n, and the number in the whole dictionary; None: all are
        here. Whoever has a part of the batch or of the dictionary draws what all have,
        block by block, and keeps its own: the same numbers, however many there are.
        """
        n, width = like.shape
        batch_position = torch.arange(n) if batch_position is None else batch_position
        first, m = latents or (0, width)
        block, last = (
            max(_ALIGNED, _BLOCK // m // _ALIGNED * _ALIGNED),
            (int(batch_position[-1]) + 1 if n else 0),
        )
        starts = torch.arange(0, last + block, block)
        ends = torch.searchsorted(batch_position, starts).tolist()
        out, generator = torch.empty_like(like), self.generator(like.device)
        for start, begin, end in zip(starts.tolist(), ends, ends[1:], strict=False):
            size = block
            if like.device.type == "cpu":  # where a shorter draw has the same numbers
                size = min(block, -(-(last - start) // _ALIGNED) * _ALIGNED)
            drawn = torch.randn(
                size, m, generator=generator, device=like.device, dtype=like.dtype
            )
            own = batch_position[begin:end] - start
            if end > begin and int(own[-1] - own[0]) == end - begin - 1:
                mine = drawn[int(own[0]) : int(own[-1]) + 1]
            else:
                mine = drawn.index_select(0, own.to(like.device))
            out[begin:end] = mine[:, first : first + width]
        return out

    def advance(self) -> None:
        """To the next update."""
        self.updates += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state[0])
