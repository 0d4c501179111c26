"""The random numbers of a training step, which a resumed run draws again.

They depend on the seed and on the number of updates so far, and on nothing else. A run
in one process and a run in four, or with micro-batches of any size, draw the same ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

# Rows are drawn 16, 32, 48, ... at a time. The numbers that torch draws on a CPU depend
# on how many are drawn at once, unless that is a multiple of 16.
_ALIGNED = 16
# How many numbers are drawn at once: 4 million, 16 MiB of float32.
_BLOCK = 1 << 22


class Draws(nn.Module):
    """Counts updates, and draws the random numbers of each.

    The count is saved in the state dict. It is a plain int, no tensor on the device, so
    that reading it never waits for the device.
    """

    def __init__(self, seed: int, stage: int) -> None:
        super().__init__()
        self.seed = seed
        self.stage = stage
        self.updates = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """Return a new generator for this update: each one gives the same numbers."""
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
        """Return noise from N(0, 1) for rows of a batch and latents of a dictionary.

        The number for a row and a latent depends on the row's position in the whole
        batch and on the latent's number in the whole dictionary. So each process draws
        the noise of the whole batch and dictionary, block by block, and keeps its part.

        In numbers: one process has the rows 0 and 2 of a batch of 4, another one the
        rows 1 and 3. Both draw [4, m]; the first keeps the rows 0 and 2 of that, the
        second the rows 1 and 3.

        Args:
            like: [B, n]: the noise has its shape, dtype and device.
            batch_position: Position of each row in the whole batch, int64 [B],
                ascending, on the host; None: 0 to B - 1.
            latents: The number of the first of these n latents in the whole dictionary,
                and the size m of that; None: all latents are here.

        Returns:
            [B, n], of the dtype of `like`.
        """
        n_rows, width = like.shape
        if batch_position is None:
            batch_position = torch.arange(n_rows)
        first_latent, n_latents = latents or (0, width)
        # The size of a block depends on the whole dictionary's size alone, so that all
        # processes draw the same blocks: 1,024 rows at a time for 4,096 latents.
        block = _BLOCK // n_latents // _ALIGNED * _ALIGNED
        block = max(_ALIGNED, block)
        end_of_rows = int(batch_position[-1]) + 1 if n_rows else 0
        # The last start is that of no block: it ends the last block.
        starts = torch.arange(0, end_of_rows + block, block)
        # The rows of this process that lie in a block are its rows `begin` up to
        # and without `end`. In numbers: positions 0, 5, 18 and blocks of 16 rows make
        # starts 0, 16, 32 and begins 0, 2, 3: two rows are in the first block, and one
        # is in the second.
        begins = torch.searchsorted(batch_position, starts).tolist()
        ends = begins[1:]
        noise = torch.empty_like(like)
        generator = self.generator(like.device)
        for start, begin, end in zip(starts.tolist(), begins, ends, strict=False):
            n_drawn = block
            # On a CPU a shorter draw has the same numbers, and takes less time.
            if like.device.type == "cpu":
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
            # Rows without a gap between them are a slice, which needs no index on the
            # device. Positions ascend, so 5, 6, 7 have no gap, since 7 - 5 = 3 - 1.
            if n_here and int(in_block[-1] - in_block[0]) == n_here - 1:
                first = int(in_block[0])
                rows = drawn[first : first + n_here]
            else:
                rows = drawn.index_select(0, in_block.to(like.device))
            noise[begin:end] = rows[:, first_latent : first_latent + width]
        return noise

    def advance(self) -> None:
        """Count an update: the next draws are those of the next one."""
        self.updates += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state[0])
