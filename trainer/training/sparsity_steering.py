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

# With an L0 of 48 where 32 is wanted e is ln 1.5 = 0.41: after that update the sum has
# grown by 0.041, the running mean by 0.041, so that the penalty is exp(0.041 + 0.5 *
# 0.041) = 1.06 times as large; and thresholds rise by 0.2 * 0.41 = 0.08.
GAIN = 0.1
PROPORTIONAL = 0.5
MEMORY = 0.9  # decay of the running mean of e
DIRECT = 0.2
RANGE = math.log(1e6)
_LEAST_L0 = 1e-3  # below it the logarithm of an L0 of 0 would be -inf


class Steering:
    """A penalty that follows the L0 of the batches.

    Attributes:
        state: float64 [2], the sum and the running mean of e.
    """

    def __init__(self, start: float, target: float, device: torch.device) -> None:
        """Begin to steer.

        Args:
            start: The penalty that gives an L0 of about 32 on rows with a mean square
                of 1; other L0s need one in inverse proportion.
            target: The wanted L0.
            device: Where batches are.
        """
        # in logarithms, in which twice too many and half as many are equally wrong
        self._log_target = math.log(target)
        self._start = math.log(start * DEFAULT_L0 / target)
        self.state = torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def weight(self) -> Tensor:
        """The penalty's weight for the next update, a float32 scalar on the device."""
        total, recent = self.state.unbind()
        return (self._start + total + PROPORTIONAL * recent).exp().float()

    def update(self, l0: Tensor, share: float) -> Tensor:
        """Take in a batch, and return by how much thresholds rise after its update.

        Args:
            l0: The batch's mean active latents per row, a scalar.
            share: The learning rate over its peak, since what learns slowly must be
                steered slowly.

        Returns:
            A float32 scalar.
        """
        log_l0 = l0.double().clamp_min(_LEAST_L0).log()
        # bounded: one odd batch must not undo what many have settled
        error = (log_l0 - self._log_target).clamp(-1, 1)
        total, recent = self.state.unbind()
        total = (total + GAIN * share * error).clamp(-RANGE, RANGE)
        recent = MEMORY * recent + (1 - MEMORY) * error
        self.state = torch.stack([total, recent])
        return (DIRECT * error).float()
