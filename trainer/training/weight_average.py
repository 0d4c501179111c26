"""An exponential moving average of an SAE's weights (EMA) over its updates.

It is what a run hands on whose spec asks for one with `ema`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from trainer.saes.build import Sae
from trainer.saes.unit_rows import normalise_rows

# The first updates average over about a tenth of the updates so far.
_WARM = 10


class Average:
    """average = decay * average + (1 - decay) * weights after each update.

    The decay of update n is at most (1 + n) / (10 + n), which keeps the first, random
    weights out: 2/11 after the first, 0.9 from the 80th on. Buffers (thresholds,
    counters) are taken as they are.
    """

    def __init__(self, sae: Sae, decay: float) -> None:
        self.decay = decay
        self.sae: Sae = copy.deepcopy(sae).requires_grad_(False)

    @torch.no_grad()
    def update(self, sae: Sae, step: int) -> None:
        """Take in the weights after update number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (_WARM + step))
        share = 1 - decay
        pairs = zip(self.sae.parameters(), sae.parameters(), strict=True)
        for average, new in pairs:
            average.lerp_(new, share)

    @torch.no_grad()
    def result(self, sae: Sae) -> Sae:
        """Return an SAE with the averaged weights, and with the buffers of `sae`.

        If the kind keeps decoder rows at norm 1, they are brought to it again: means of
        unit vectors are shorter.
        """
        result = copy.deepcopy(self.sae)
        if result.unit_decoder:
            normalise_rows(result.W_dec)
        averaged = dict(result.named_parameters())
        # what is no parameter is a buffer, which is not averaged: a threshold is a mean
        # itself, and a counter has none
        state = {}
        for name, value in sae.state_dict().items():
            state[name] = averaged.get(name, value)
        result.load_state_dict(state)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return the averaged weights by name, each [...] of its parameter's shape."""
        parameters = self.sae.named_parameters()
        return {name: value.detach() for name, value in parameters}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back averaged weights, with the names and shapes [...] of `state`."""
        for name, average in self.sae.named_parameters():
            average.copy_(tensors[name])
