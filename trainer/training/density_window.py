"""How often latents fire over the last rows of training: a sliding window of counts.

The window is a ring of eight parts at most, each with the firings of so many steps.
What is older than the window is dropped a part at a time: there is always at most one
part less than the whole window, once there were as many rows. Counting is one addition
for each step, on the device; nothing waits for it.
"""

from __future__ import annotations

import math

import torch

from schemas.records import Density
from schemas.train import TrainSpec
from trainer.distributed.learner_protocol import Parallel, Tensors, Totals
from trainer.evaluation.metric_definitions import density_bins

PARTS = 8
# Of a window whose size is left to us: at most so many rows, and of the run's rows one
# in so many.
MOST_ROWS = 10_000_000
SHARE = 10


def window_steps(spec: TrainSpec, steps: int) -> int:
    """Return how many steps a window has.

    Args:
        spec: The run's.
        steps: Updates of the run.
    """
    batch = spec.stream.batch
    if spec.density_rows != "auto":
        return max(1, math.ceil(spec.density_rows / batch))
    most = max(PARTS, MOST_ROWS // batch)
    return min(most, max(PARTS, steps // SHARE))


class DensityWindow:
    """Counts on how many of the last rows each latent fired."""

    def __init__(
        self, spec: TrainSpec, n_latents: int, steps: int, device: torch.device
    ) -> None:
        """Begin with nothing counted.

        Args:
            spec: The run's.
            n_latents: Latents of this process, m.
            steps: Updates of the run.
            device: Where training counts.
        """
        n_steps = window_steps(spec, steps)
        self._part_steps = math.ceil(n_steps / PARTS)
        # 9 steps are 5 parts of 2
        n_parts = math.ceil(n_steps / self._part_steps)
        self._log_every = spec.log_every
        self._steps = steps
        # int32 has room for the firings of a part: its rows are fewer than 2^31
        self._firings = torch.zeros(
            n_parts, n_latents, dtype=torch.int32, device=device
        )
        self._rows = torch.zeros(n_parts, dtype=torch.int64, device=device)

    def add(self, totals: Totals, step: int) -> None:
        """Count a batch.

        Args:
            totals: Its rows, and on how many of them each latent fired.
            step: Updates before it.
        """
        part = step // self._part_steps % len(self._rows)
        if step % self._part_steps == 0:
            self._firings[part].zero_()
            self._rows[part].zero_()
        self._firings[part].add_(totals.fired)
        self._rows[part].add_(totals.rows)

    def is_due(self, step: int) -> bool:
        """Return whether a step that is logged gets a histogram.

        That is the first one in each part, and the last of the run.
        """
        before = max(0, step - self._log_every)
        is_new_part = step // self._part_steps != before // self._part_steps
        return is_new_part or step == self._steps

    def histogram(self, parallel: Parallel) -> Density:
        """Return how many latents fire how often; it waits for the device.

        In a window of 1,000 rows a latent that fired on 10 has density 0.01, and counts
        in the bin of -2.
        """
        firings = self._firings.sum(dim=0)
        rows = self._rows.sum()
        counts = density_bins(firings.double() / rows.clamp_min(1))
        numbers = torch.cat([parallel.latent_counts(counts), rows[None]]).tolist()
        return Density(rows=numbers[-1], counts=tuple(numbers[:-1]))

    def state(self) -> Tensors:
        """Return the counts, for a checkpoint: int32 [parts, m] and int64 [parts]."""
        return {"density_firings": self._firings, "density_rows": self._rows}

    def restore(self, tensors: Tensors) -> None:
        """Put back what `state` gave; a checkpoint of an earlier version has none."""
        if "density_firings" in tensors:
            self._firings.copy_(tensors["density_firings"])
            self._rows.copy_(tensors["density_rows"])
