"""One SAE being trained: its weights, its optimiser, its latents' ages, its running
sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from actstore.stream.rescale import Rescaling
from schemas.sae import Penalised, SaeSpec, inner_of
from schemas.train import TrainSpec
from trainer.kernels.backend import products, using
from trainer.saes.build import (
    LATENT_AXIS,
    Sae,
    lift_biases,
    margin_std,
    raise_thresholds,
)
from trainer.saes.ops import Penalty, ScaledRows, Step
from trainer.training.compiled_forward import forward_of
from trainer.training.contiguous_parameters import contiguous_parameters
from trainer.training.learning_rates import dead_after, peak_rate
from trainer.training.micro_batches import detached, joined, micro_batches, selected
from trainer.training.sparsity_steering import Steering
from trainer.training.warmup_and_decay import learning_rate, sparsity
from trainer.training.weight_average import Average

if TYPE_CHECKING:
    from trainer.distributed.parallel import Parallel

SUMS = ("steps", "rows", "loss", "l0")
# updates between two looks at which latents are dead, for AuxK: an update's only wait
# for the device
DEAD_EVERY = 50


class Interval(NamedTuple):
    """rows: trained on so far; the rest are means over the steps since the last call.
    fvu: against the stored variance of the rows' layers; mse: in original units, of
    aligned rows over all sites of a token; layers: FVU of each site, None where no row
    was of it.
    """

    rows: int
    loss: float
    mse: float
    l0: float
    fvu: float
    dead: int
    layers: list[float | None]
    parts: dict[str, float]


class Learner:
    """Trains on batches in original units: rescaling is the learner's own, so learners
    share one stream.

    variance: float [n_sites], the stored total variance of each site (of a transcoder,
    of each target); norms: float [n_sites], the mean norm of each site's rows after
    rescaling, for architectures that want it; out: a transcoder's rescaling of its
    targets; parallel: how several processes share the work, None for one.
    """

    def __init__(
        self,
        spec: TrainSpec,
        sae: Sae,
        rescale: Rescaling,
        variance: Tensor,
        steps: int,
        device: torch.device,
        norms: Tensor | None = None,
        out: Rescaling | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.parallel = parallel
        self.spec, self.sae, self.steps = spec, sae.to(device), steps
        self.scale, self.mean = _on(rescale, device)
        self.scale_out, self.mean_out = (
            (self.scale, self.mean) if out is None else _on(out, device)
        )
        self.variance = variance.to(device, torch.float32)
        self.norms = None if norms is None else norms.to(device, torch.float32)
        plan = spec.optimiser
        self.lr = peak_rate(spec, sae.d, steps)
        self.dead_rows = dead_after(spec, spec.sae.size(sae.d), steps)
        self.weight, target = penalty_of(spec.sae)
        self.steering = (
            None
            if target is None
            else Steering(inner_of(spec.sae).kind, target, device)
        )
        self.optimiser = torch.optim.AdamW(
            sae.parameters(),
            self.lr,
            plan.betas,
            plan.eps,
            weight_decay=plan.weight_decay,
            fused=True,
        )
        self.silent_rows = torch.zeros(sae.n_latents, dtype=torch.int64, device=device)
        # rows; not those that were skipped
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        # latents that AuxK may use: `_dead`
        self.listed = torch.zeros(0, dtype=torch.int64, device=device)
        inner = getattr(sae, "inner", sae)  # of transcoders and crosscoders
        self._has_aux = bool(getattr(inner.spec, "aux_coefficient", 0))
        self.average: Average | None = None
        self.step = 0
        self._forward = (
            forward_of(self.sae, spec.compile)
            if parallel is None
            else parallel.forward_of(self.sae)
        )
        self._products = products(spec.kernels)
        self._device = device
        self.start_average()
        self.reset_sums()

    def start_average(self) -> None:
        """Begin averaging at the weights as they are, if the spec wants an average."""
        self.average = (
            None if self.spec.ema is None else Average(self.sae, self.spec.ema)
        )

    def result(self) -> Sae:
        """What training has made: a copy with averaged weights where these are wanted,
        else the SAE itself.
        """
        return self.sae if self.average is None else self.average.result(self.sae)

    def rows(
        self,
        x: Tensor,
        layer: Tensor,
        target: Tensor | None = None,
        batch_position: Tensor | None = None,
    ) -> ScaledRows:
        """A batch in original units as the SAE sees it: x [B, d] (aligned rows: [B,
        n_sites, d]), target [B, d_out]; batch_position: as in `ScaledRows`.
        """
        if x.ndim == 3:
            return ScaledRows(
                _scaled(x, self.scale, self.mean),
                norm=self.norms,
                batch_position=batch_position,
            )
        wanted = (
            None
            if target is None
            else _scaled(target, self.scale_out, self.mean_out, layer)
        )
        return ScaledRows(
            _scaled(x, self.scale, self.mean, layer),
            layer,
            self.norms,
            wanted,
            batch_position,
        )

    def update(
        self,
        x: Tensor,
        layer: Tensor,
        target: Tensor | None = None,
        batch_position: Tensor | None = None,
    ) -> None:
        """One optimiser step on a batch in original units; layer: int64 [B]; the others
        as in `rows`.
        """
        rows = self.rows(x, layer, target, batch_position)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * learning_rate(
                self.spec.optimiser, self.step, self.steps
            )
        self.optimiser.zero_grad(set_to_none=True)
        result = self._gradients(rows)
        self.sae.before_update()
        if self.spec.optimiser.clip is not None:
            self._clip(self.spec.optimiser.clip)
        with contiguous_parameters(self.optimiser):
            self.optimiser.step()
        self.sae.after_update()
        self._count(rows, result)
        self._revive()
        self.step += 1
        if self.average is not None:
            self.average.update(self.sae, self.step)

    def _gradients(self, rows: ScaledRows) -> Step:
        """Gradients of the batch's mean loss, summed over its micro-batches; returns
        the whole batch's step, detached.

        They come out as from one big batch: its loss is a mean over rows; what
        BatchTopK keeps of it is found first.
        """
        weight = self._penalty()
        dead = self._dead()
        steps: list[Step] = []
        pieces = self._pieces(rows)
        n = len(rows.x) if self.parallel is None else self.parallel.rows(len(rows.x))
        for i, piece in enumerate(pieces):
            with self._computing():
                step = self._forward(piece, weight, dead)
            weighted = (
                step.loss
                if isinstance(n, int) and len(piece.x) == n
                else step.loss * (len(piece.x) / n)
            )
            with self._reducing(last=i == len(pieces) - 1):
                weighted.backward()
            steps.append(detached(step))
        return joined(steps, [len(piece.x) for piece in pieces])

    @property
    def penalty(self) -> float | None:
        """The weight of the sparsity penalty after warm-up, as it is given or steered
        to now; None without one.
        """
        if self.steering is not None:
            return float(self.steering.weight)
        return self.weight or None

    def _penalty(self) -> Penalty:
        """The weight of the sparsity penalty at this step."""
        if self.steering is not None:
            return self.steering.weight
        return self.weight * sparsity(self.spec.optimiser, self.step, self.steps)

    def _dead(self) -> Tensor:
        """What AuxK may use, as `codes.listed` has it: those dead when last looked for,
        and dead still.

        How many latents are dead decides the size of AuxK's codes, which the host has
        to know. It asks every DEAD_EVERY updates, whatever is logged; in between a size
        stays.
        """
        if self._has_aux and self.step % DEAD_EVERY == 0:
            self.listed = (self.silent_rows > self.dead_rows).nonzero()[:, 0]
        still = self.silent_rows.index_select(0, self.listed) > self.dead_rows
        return torch.where(still, self.listed, ~self.listed)

    def _pieces(self, rows: ScaledRows) -> list[ScaledRows]:
        """Micro-batches of rows, with what is kept of the whole batch."""
        if self.spec.accumulate > 1:
            with self._computing():
                rows = (
                    selected(self.sae, rows)
                    if self.parallel is None
                    else self.parallel.selected(self.sae, rows)
                )
        return micro_batches(
            rows, self.spec.accumulate, some_empty=self.parallel is not None
        )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Around forwards: the spec's kernels and precision."""
        reduced = self.spec.precision == "bfloat16"
        with (
            using(self._products),
            torch.autocast(self._device.type, torch.bfloat16, enabled=reduced),
        ):
            yield

    def _reducing(self, last: bool) -> AbstractContextManager[None]:
        if self.parallel is None or not last:
            return nullcontext()
        return self.parallel.reducing(self.sae.parameters())

    def _revive(self) -> None:
        """Lift the biases of dead latents, each update by the peak learning rate, until
        they fire.
        """
        if self.spec.revive:
            lift_biases(self.sae, self.silent_rows > self.dead_rows, self.lr)

    def _clip(self, limit: float) -> None:
        if self.parallel is None:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), limit)
        else:
            self.parallel.clip(self.sae, limit)

    @torch.no_grad()
    def reconstruction(self, rows: ScaledRows) -> Tensor:
        """Of rows as the SAE sees them, as in a training step of the weights as they
        are.
        """
        none_dead = self.silent_rows.new_zeros(0)  # AuxK is no part of it
        with self._computing():
            return torch.cat(
                [
                    self._forward(piece, 1.0, none_dead).reconstruction
                    for piece in self._pieces(rows)
                ]
            )

    def forget(self, latents: Tensor) -> None:
        """Latents [n] that were given new weights: Adam's moments are 0 again, and they
        count as alive.
        """
        self.silent_rows[latents] = 0
        inner = getattr(self.sae, "inner", self.sae)  # of transcoders and crosscoders
        for name, parameter in inner.named_parameters():
            if name in LATENT_AXIS:
                for value in self.optimiser.state[parameter].values():
                    # the moments, not the number of updates
                    if value.shape == parameter.shape:
                        value.index_fill_(LATENT_AXIS[name], latents, 0.0)

    @torch.no_grad()
    def _count(self, rows: ScaledRows, result: Step) -> None:
        layer, variance, n = rows.layer, self.variance, len(rows.x)
        error = (result.reconstruction.float() - rows.wanted).square().sum(dim=-1)
        if layer is None:
            by_layer = torch.stack([error.sum(dim=0), n * variance])
        else:
            both = torch.stack([error, variance.index_select(0, layer)])
            by_layer = both.new_zeros(2, len(variance)).index_add_(1, layer, both)
        by_layer[0] /= self.scale_out.square()
        self._add(n, result, by_layer)

    def _add(self, n: int | Tensor, result: Step, by_layer: Tensor) -> None:
        means, fired = (
            {
                "loss": result.loss,
                "l0": result.l0,
                **result.parts,
            },
            result.fired,
        )
        if self.parallel is not None:
            assert isinstance(n, int)
            n, fired, means, by_layer = self.parallel.totals(n, fired, means, by_layer)
        self.silent_rows.add_(n).masked_fill_(fired > 0, 0)
        self.seen += n
        self.sums["steps"] += 1
        self.sums["rows"] += n
        if self.steering is not None:
            means["penalty"] = self.steering.weight
            share = learning_rate(self.spec.optimiser, self.step, self.steps)
            rise = self.steering.update(means["l0"], share)
            raise_thresholds(self.sae, rise * margin_std(self.sae))
        self.by_layer += by_layer
        for name, value in means.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(
                    (), dtype=torch.float64, device=self._device
                )
            self.sums[name] += value

    def finite(self) -> bool:
        """Whether the weights and the losses since the last interval are all numbers
        (one transfer).
        """
        tensors = [*self.sae.parameters(), self.sums["loss"]]
        good = bool(
            torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all()
        )
        return good if self.parallel is None else self.parallel.agreed(good)

    def reset_sums(self) -> None:
        """Begin a new interval."""
        self.sums: dict[str, Tensor] = {
            n: torch.zeros((), dtype=torch.float64, device=self._device) for n in SUMS
        }
        self.by_layer = torch.zeros(
            2, len(self.variance), dtype=torch.float64, device=self._device
        )

    def interval(self) -> Interval:
        """The interval's means (one transfer from the device), and begin a new one."""
        sums = torch.stack([*self.sums.values(), self.seen.double()])
        flat = torch.cat([sums, self.by_layer.flatten()]).tolist()
        values = dict(zip([*self.sums, "seen"], flat, strict=False))
        by_layer = torch.tensor(flat[len(values) :], dtype=torch.float64).reshape(2, -1)
        error, variance = by_layer.sum(dim=1).tolist()
        n = max(values["steps"], 1.0)
        parts = {
            name: value / n
            for name, value in values.items()
            if name not in {*SUMS, "seen"}
        }
        dead = int((self.silent_rows > self.dead_rows).sum())
        if self.parallel is not None:
            dead = self.parallel.latents(dead)
        mse, fvu = (
            error / (values["rows"] or math.nan),
            (error / variance if variance else math.nan),
        )
        layers = [
            wrong / all_of_it if all_of_it else None
            for wrong, all_of_it in by_layer.T.tolist()
        ]
        self.reset_sums()
        return Interval(
            int(values["seen"]),
            values["loss"] / n,
            mse,
            values["l0"] / n,
            fvu,
            dead,
            layers,
            parts,
        )


def penalty_of(sae: SaeSpec) -> tuple[float, float | None]:
    """The weight of the sparsity penalty as it is given (0 for kinds that have none),
    and the L0 it is steered to.
    """
    inner = inner_of(sae)
    if not isinstance(inner, Penalised):
        return 0.0, None
    return inner.penalty_weight or 0.0, inner.steered_l0


def _on(factors: Rescaling, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Scale float32 [n_sites] and mean [n_sites, d] on the device."""
    mean = None if factors.mean is None else torch.from_numpy(factors.mean).to(device)
    return torch.from_numpy(factors.scale).to(device, torch.float32), mean


def _scaled(
    x: Tensor, scale: Tensor, mean: Tensor | None, layer: Tensor | None = None
) -> Tensor:
    """(x - mean_l) * scale_l, float32. x: [B, d] with the layer of each row, or [B,
    n_sites, d].
    """
    if mean is not None:
        mean = mean if layer is None else mean.index_select(0, layer)
    wide = x.float() if mean is None else x.float() - mean
    return wide * (scale if layer is None else scale.index_select(0, layer))[..., None]
