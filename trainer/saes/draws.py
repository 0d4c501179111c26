"""Random draws of a training step that depend on (seed, updates so far) only, so that a resumed run repeats them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """Counts updates, as part of the state dict but on the host: reading the count never waits for the device."""

    def __init__(self, seed: int, stage: int) -> None:
        super().__init__()
        self.seed, self.stage, self.updates = seed, stage, 0

    def generator(self, device: torch.device, part: int = 0) -> torch.Generator:
        """A generator for this update, and this micro-batch of it: the same however often it is asked for."""
        key = np.random.SeedSequence([self.seed, self.stage, self.updates, part]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(key[0] >> np.uint64(1)))

    def advance(self) -> None:
        """To the next update."""
        self.updates += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        self.updates = int(state[0])
