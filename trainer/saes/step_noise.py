"""Random draws of a training step, which a resumed run repeats.

They depend on the seed and on the number of updates so far, and on nothing else: not on
how many processes or micro-batches a batch is divided among.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

# Rows are drawn in multiples of so many: the numbers that torch draws on a CPU depend
# on the draw's size unless that is a multiple of 16.
_ALIGNED = 16
_BLOCK = 1 << 22  # numbers drawn at once


class Draws(nn.Module):
    """Counts updates, and draws the random numbers of each.

    The count is a part of the state dict, but a number of the host: reading it never
    waits for the device.
    """

    def __init__(self, seed: int, stage: int) -> None:
        super().__init__()
        self.seed = seed
        self.stage = stage
        self.updates = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a generator for this update, the same at each call."""
        entropy = [self.seed, self.stage, self.updates, 0]
        key = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        # torch takes seeds below 2^63
        seed = int(key[0] >> np.uint64(1))
        return torch.Generator(device).manual_seed(seed)

    def normal(
        self,
        like: Tensor,
        batch_position: Tensor | None,
        latents: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return numbers from N(0, 1), by a row's position in its batch and by latent.

        Whoever has a part of the batch or of the dictionary draws what all have, block
        by block, and keeps its own: the same numbers, however many there are. With rows
        0 and 2 of a batch of 4 in one process, and rows 1 and 3 in another, both draw
        [4, m]; the first keeps rows 0 and 2 of it, the second rows 1 and 3.

        Args:
            like: [B, n], whose shape, dtype and device they take.
            batch_position: int64 [B], ascending, on the host; None: 0 to B - 1.
            latents: The number of the first of these n latents, and how many the whole
                dictionary has; None: all are here.

        Returns:
            [B, n].
        """
        n_rows, width = like.shape
        if batch_position is None:
            batch_position = torch.arange(n_rows)
        first_latent, n_latents = latents or (0, width)
        # Blocks depend on the whole dictionary's size alone, so that all processes draw
        # the same ones: of 4,096 latents 1,024 rows at once.
        block = _BLOCK // n_latents // _ALIGNED * _ALIGNED
        block = max(_ALIGNED, block)
        end_of_rows = int(batch_position[-1]) + 1 if n_rows else 0
        # one start more than there are blocks, which ends the last one
        starts = torch.arange(0, end_of_rows + block, block)
        # of the rows here, those in a block are from `begin` to `end`
        begins = torch.searchsorted(batch_position, starts).tolist()
        ends = begins[1:]
        noise = torch.empty_like(like)
        generator = self.generator(like.device)
        for start, begin, end in zip(starts.tolist(), begins, ends, strict=False):
            n_drawn = block
            if like.device.type == "cpu":  # where a shorter draw has the same numbers
                left = end_of_rows - start
                rounded_up = -(-left // _ALIGNED) * _ALIGNED
                n_drawn = min(block, rounded_up)
            drawn = torch.randn(
                n_drawn,
                n_latents,
                generator=generator,
                device=like.device,
                dtype=like.dtype,
            )
            in_block = batch_position[begin:end] - start
            n_here = end - begin
            # Positions ascend, so that 5, 6, 7 are neighbours, for 7 - 5 = 3 - 1. A run
            # of neighbours is a view, which costs no copy to the device.
            if n_here and int(in_block[-1] - in_block[0]) == n_here - 1:
                first = int(in_block[0])
                rows = drawn[first : first + n_here]
            else:
                rows = drawn.index_select(0, in_block.to(like.device))
            noise[begin:end] = rows[:, first_latent : first_latent + width]
        return noise

    def advance(self) -> None:
        """Go on to the next update."""
        self.updates += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state[0])
