"""Sparsity steered to a wanted L0 (mean active latents per row), whatever the data.

After each update, with e = ln(L0 / target) of its batch, bounded to [-1, 1]:

- the penalty's weight follows: ln weight = sum of GAIN * e over the updates +
  PROPORTIONAL * (running mean of e), the sum bounded to RANGE around where it began. It
  grows or shrinks until training itself keeps the L0.
- all thresholds rise by DIRECT * e, in units in which a rise of 1 makes latents several
  times rarer. This acts at once, where the weight acts through the optimiser, so that
  the L0 is near its target from the first updates to the last.

Everything stays on the device, so steering waits for nothing, and is a function of the
batches alone: a resumed run repeats it. What is left at the end is a part of a per
cent, and `calibration` takes that away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from schemas.sae import DEFAULT_L0

GAIN = 0.1
PROPORTIONAL = 0.5
MEMORY = 0.9  # of the running mean of e
DIRECT = 0.2
RANGE = math.log(1e6)
_LEAST_L0 = 1e-3

# Where the weights begin: they gave an L0 of about 32 on rows with a mean square of 1.
STARTING_WEIGHT = {
    "relu_l1": 0.2,
    "gated": 0.2,
    "mlp_encoder": 0.15,
    "jumprelu": 0.05,
    "nsae": 0.008,
}


class Steering:
    """state: float64 [2], the sum and the running mean of e."""

    def __init__(self, kind: str, target: float, device: torch.device) -> None:
        self._log_target, self._start = (
            math.log(target),
            math.log(STARTING_WEIGHT[kind] * DEFAULT_L0 / target),
        )
        self.state = torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def weight(self) -> Tensor:
        """The penalty's weight for the next update, a float32 scalar on the device."""
        total, recent = self.state.unbind()
        return (self._start + total + PROPORTIONAL * recent).exp().float()

    def update(self, l0: Tensor, share: float) -> Tensor:
        """By how much thresholds rise after an update whose batch had a mean of l0
        active latents, a float32 scalar.

        share: the learning rate over its peak, since what learns slowly must be steered
        slowly.
        """
        error = (l0.double().clamp_min(_LEAST_L0).log() - self._log_target).clamp(-1, 1)
        total, recent = self.state.unbind()
        total = (total + GAIN * share * error).clamp(-RANGE, RANGE)
        self.state = torch.stack([total, MEMORY * recent + (1 - MEMORY) * error])
        return (DIRECT * error).float()
