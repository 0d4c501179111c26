"""An exponential moving average of the weights (EMA), which is what an averaged run
hands on.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from trainer.saes.build import Sae
from trainer.saes.ops import normalise_rows

_WARM = 10  # the first updates average over about a tenth of what there was


class Average:
    """average = decay * average + (1 - decay) * weights behind each update, with decay
    at most (1 + n) / (10 + n).

    The warm-up keeps the first, random weights out. Buffers (thresholds, counters) are
    taken as they are.
    """

    def __init__(self, sae: Sae, decay: float) -> None:
        self.decay = decay
        self.sae: Sae = copy.deepcopy(sae).requires_grad_(False)

    @torch.no_grad()
    def update(self, sae: Sae, step: int) -> None:
        """Behind update number `step`, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (_WARM + step))
        for own, new in zip(self.sae.parameters(), sae.parameters(), strict=True):
            own.lerp_(new, share)

    @torch.no_grad()
    def result(self, sae: Sae) -> Sae:
        """What to hand on: averaged weights, decoder rows at norm 1 again where the
        kind wants it, sae's buffers.
        """
        made = copy.deepcopy(self.sae)
        if made.unit_decoder:
            normalise_rows(made.W_dec)
        averaged = dict(made.named_parameters())
        made.load_state_dict(
            {
                name: averaged.get(name, value)
                for name, value in sae.state_dict().items()
            }
        )
        return made

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.sae.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        for name, own in self.sae.named_parameters():
            own.copy_(tensors[name])
