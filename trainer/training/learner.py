"""One SAE being trained: its weights, its optimiser, its latents' ages, its running sums."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from actstore.stream.rescale import Rescaling
from schemas.train import TrainSpec
from trainer.saes.build import Sae
from trainer.training.schedule import learning_rate, sparsity

SUMS = ("steps", "rows", "loss", "l0", "error", "variance")


class Interval(NamedTuple):
    """Means over the steps since the last call; `fvu` against the stored variance of the rows' layers."""

    loss: float
    mse: float
    l0: float
    fvu: float
    dead: int
    parts: dict[str, float]


class Learner:
    """Trains on batches in original units: rescaling is the learner's own, so learners share one stream.

    variance: float [n_sites], the stored total variance of each site.
    """

    def __init__(
        self, spec: TrainSpec, sae: Sae, rescale: Rescaling, variance: Tensor, steps: int, device: torch.device
    ) -> None:
        self.spec, self.sae, self.steps = spec, sae.to(device), steps
        self.scale = torch.from_numpy(rescale.scale).to(device, torch.float32)
        self.mean = None if rescale.mean is None else torch.from_numpy(rescale.mean).to(device)
        self.variance = variance.to(device, torch.float32)
        plan = spec.optimiser
        self.optimiser = torch.optim.AdamW(
            sae.parameters(), plan.lr, plan.betas, plan.eps, weight_decay=plan.weight_decay, fused=True
        )
        self.silent_rows = torch.zeros(sae.n_latents, dtype=torch.int64, device=device)
        self.step = 0
        self._device = device
        self.reset_sums()

    def scaled(self, x: Tensor, layer: Tensor) -> Tensor:
        """(x - mean_l) * scale_l, float32 [B, d]."""
        wide = x.float() if self.mean is None else x.float() - self.mean.index_select(0, layer)
        return wide * self.scale.index_select(0, layer)[:, None]

    def update(self, x: Tensor, layer: Tensor) -> None:
        """One optimiser step on a batch: x [B, d] in original units, layer [B]."""
        rows = self.scaled(x, layer)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.spec.optimiser, self.step, self.steps)
        share = sparsity(self.spec.optimiser, self.step, self.steps)
        dead = self.silent_rows > self.spec.dead_rows
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            result = self.sae.training_step(rows, share, dead)
        self.optimiser.zero_grad(set_to_none=True)
        result.loss.backward()
        self.sae.before_update()
        if self.spec.optimiser.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.spec.optimiser.clip)
        self.optimiser.step()
        self.sae.after_update()
        self.step += 1
        self._count(rows, layer, result.reconstruction.detach(), result.fired)
        self._add({"loss": result.loss.detach(), "l0": result.l0, **{k: v.detach() for k, v in result.parts.items()}})

    @torch.no_grad()
    def _count(self, rows: Tensor, layer: Tensor, reconstruction: Tensor, fired: Tensor) -> None:
        self.silent_rows.add_(len(rows)).masked_fill_(fired > 0, 0)
        scale = self.scale.index_select(0, layer)
        error = (reconstruction.float() - rows).square().sum(dim=1) / scale.square()
        self.sums["error"] += error.sum()
        self.sums["variance"] += self.variance.index_select(0, layer).sum()
        self.sums["rows"] += len(rows)

    def _add(self, values: dict[str, Tensor]) -> None:
        self.sums["steps"] += 1
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), dtype=torch.float64, device=self._device)
            self.sums[name] += value

    def reset_sums(self) -> None:
        """Begin a new interval."""
        self.sums: dict[str, Tensor] = {n: torch.zeros((), dtype=torch.float64, device=self._device) for n in SUMS}

    def interval(self) -> Interval:
        """The interval's means (one transfer from the device), and begin a new one."""
        values = dict(zip(self.sums, torch.stack(list(self.sums.values())).tolist(), strict=True))
        n = max(values["steps"], 1.0)
        parts = {name: value / n for name, value in values.items() if name not in SUMS}
        dead = int((self.silent_rows > self.spec.dead_rows).sum())
        mse = values["error"] / max(values["rows"], 1.0)
        fvu = values["error"] / values["variance"] if values["variance"] else math.nan
        self.reset_sums()
        return Interval(values["loss"] / n, mse, values["l0"] / n, fvu, dead, parts)
