"""One SAE being trained, with its optimiser and all that training adds to it.

These are the ages of its latents, its running sums, the steering of its penalty and the
average of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from actstore.stream.rescale import Rescaling
from schemas.records import Density
from schemas.sae import SaeSpec, inner_of
from schemas.train import TrainSpec
from trainer.distributed.learner_protocol import Parallel, Tensors, Totals
from trainer.distributed.single_process import SINGLE_PROCESS
from trainer.kernels.backend import products, using
from trainer.kernels.layer_sums import sums_by_layer
from trainer.saes.build import Sae, latents_kind, latents_of
from trainer.saes.compiled_forward import forward_of
from trainer.saes.explained_variance import fvu
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.step import Penalty, Step
from trainer.training.contiguous_parameters import contiguous_parameters
from trainer.training.density_window import DensityWindow
from trainer.training.learning_rates import dead_after, peak_rate
from trainer.training.micro_batches import detached, joined, micro_batches
from trainer.training.sparsity_steering import Steering
from trainer.training.warmup_and_decay import learning_rate, sparsity
from trainer.training.weight_average import Average

# The running sums that every kind has.
SUMS = ("steps", "rows", "loss", "l0")
# updates between two looks at which latents are dead, for AuxK: an update's only wait
# for the device
DEAD_EVERY = 50


class Interval(NamedTuple):
    """Figures of some steps: means over the steps since the last call."""

    rows: int
    """Trained on so far, since the run began."""
    loss: float
    mse: float
    """In original units; of aligned rows over all sites of a token."""
    l0: float
    fvu: float
    """Against the stored variance of the rows' layers."""
    dead: int
    """Latents that are dead now."""
    layers: list[float | None]
    """FVU of each site; None where no row was of it."""
    parts: dict[str, float]
    """The terms of the loss, by name."""
    density: Density | None = None
    """How often latents fired in the window, at some of the steps."""


class Learner:
    """Trains on batches in original units.

    Rescaling is the learner's own, so that learners share one stream.
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
        parallel: Parallel = SINGLE_PROCESS,
    ) -> None:
        """Begin with an SAE as it is.

        Args:
            spec: The run's.
            sae: What is trained, in place; of a split dictionary this process's part.
            rescale: From original units to those the SAE sees.
            variance: float [n_sites], the stored total variance of each site (of a
                transcoder, of each target).
            steps: Updates of the run.
            device: Where it is trained.
            norms: float [n_sites], the mean norm of each site's rows after rescaling,
                for architectures that want it.
            out: A transcoder's rescaling of its targets.
            parallel: How processes share the work.
        """
        self.parallel = parallel
        self.spec = spec
        self.sae = sae.to(device)
        self.steps = steps
        self.scale, self.mean = _on(rescale, device)
        self.scale_out = self.scale
        self.mean_out = self.mean
        if out is not None:
            self.scale_out, self.mean_out = _on(out, device)
        self.variance = variance.to(device, torch.float32)
        self.norms = None if norms is None else norms.to(device, torch.float32)
        self.lr = peak_rate(spec, sae.d, steps)
        self.dead_rows = dead_after(spec, spec.sae.size(sae.d), steps)
        self.weight, target = penalty_of(spec.sae)
        self.steering: Steering | None = None
        if target is not None:
            start = latents_kind(spec.sae).starting_penalty
            assert start is not None, "a kind that is steered has a penalty"
            self.steering = Steering(start, target, device)
        plan = spec.optimiser
        self.optimiser = torch.optim.AdamW(
            sae.parameters(),
            self.lr,
            plan.betas,
            plan.eps,
            weight_decay=plan.weight_decay,
            fused=True,
        )
        # by latent, the rows since it last fired
        self.silent_rows = torch.zeros(sae.n_latents, dtype=torch.int64, device=device)
        # rows trained on; not those that were skipped
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        # latents that AuxK may use: `_dead`
        self.listed = torch.zeros(0, dtype=torch.int64, device=device)
        latents_spec = latents_of(sae).spec
        self._has_aux = bool(getattr(latents_spec, "aux_coefficient", 0))
        self.density = DensityWindow(spec, sae.n_latents, steps, device)
        self.average: Average | None = None
        self.step = 0
        self._forward = forward_of(
            self.sae, spec.compile, uneven=parallel.uneven_rows, parts=parallel.parts
        )
        self._products = products(spec.kernels)
        self._device = device
        self.start_average()
        self.reset_sums()

    def start_average(self) -> None:
        """Begin averaging at the weights as they are, if the spec wants an average."""
        if self.spec.ema is not None:
            self.average = Average(self.sae, self.spec.ema)

    def result(self) -> Sae:
        """Return what training has made.

        It is a copy with averaged weights where the spec wants an average, else the SAE
        itself.
        """
        if self.average is None:
            return self.sae
        return self.average.result(self.sae)

    def rows(
        self,
        x: Tensor,
        layer: Tensor,
        target: Tensor | None = None,
        batch_position: Tensor | None = None,
    ) -> ScaledRows:
        """Return a batch as the SAE sees it.

        Args:
            x: [B, d] in original units; aligned rows [B, n_sites, d].
            layer: int64 [B].
            target: [B, d_out] in original units, for a transcoder.
            batch_position: As in `ScaledRows`.
        """
        if x.ndim == 3:
            return ScaledRows(
                _scaled(x, self.scale, self.mean),
                norm=self.norms,
                batch_position=batch_position,
            )
        if target is not None:
            target = _scaled(target, self.scale_out, self.mean_out, layer)
        x = _scaled(x, self.scale, self.mean, layer)
        return ScaledRows(x, layer, self.norms, target, batch_position)

    def update(
        self,
        x: Tensor,
        layer: Tensor,
        target: Tensor | None = None,
        batch_position: Tensor | None = None,
    ) -> None:
        """Take one optimiser step on a batch; the arguments are those of `rows`.

        So x is [B, d] in original units, and layer int64 [B].
        """
        rows = self.rows(x, layer, target, batch_position)
        share = learning_rate(self.spec.optimiser, self.step, self.steps)
        lr = self.lr * share
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        result = self._gradients(rows)
        # first: a norm is clipped by what the optimiser is going to see
        self.sae.before_update()
        if self.spec.optimiser.clip is not None:
            self.parallel.clip(self.sae, self.spec.optimiser.clip)
        with contiguous_parameters(self.optimiser):
            self.optimiser.step()
        self.sae.after_update(result)
        # what fired in this step is alive, and its bias is not lifted
        self._count(rows, result)
        self._revive()
        self.step += 1
        # of the weights as the update left them, at norm 1 again
        if self.average is not None:
            self.average.update(self.sae, self.step)

    def _gradients(self, rows: ScaledRows) -> Step:
        """Fill in the gradients of the batch's mean loss, from its micro-batches.

        They come out as from one big batch: its loss is a mean over rows, so that a
        micro-batch of 512 of 4,096 rows counts an eighth; what BatchTopK keeps of the
        batch is found first. Returns the whole batch's step, detached.
        """
        weight = self._penalty()
        dead = self._dead()
        pieces = self._pieces(rows)
        n_rows = self.parallel.rows(len(rows.x))
        steps: list[Step] = []
        for i, piece in enumerate(pieces):
            n_piece = len(piece.x)
            with self._computing():
                step = self._forward(piece, weight, dead)
            loss = step.loss
            # the number is a tensor where asking for it would wait for the device
            if not isinstance(n_rows, int) or n_piece != n_rows:
                loss = loss * (n_piece / n_rows)
            with self._reducing(last=i == len(pieces) - 1):
                loss.backward()
            steps.append(detached(step))
        return joined(steps, [len(piece.x) for piece in pieces])

    @property
    def penalty(self) -> float | None:
        """The weight of the sparsity penalty after warm-up; None without one.

        It is the one that the spec gives, or that steering has come to.
        """
        if self.steering is not None:
            return float(self.steering.weight)
        return self.weight or None

    def _penalty(self) -> Penalty:
        """Return the weight of the sparsity penalty at this step."""
        if self.steering is not None:
            return self.steering.weight
        return self.weight * sparsity(self.spec.optimiser, self.step, self.steps)

    def _dead(self) -> Tensor:
        """Return what AuxK may use, as `sparse_codes.listed` has it.

        These are the latents dead when last looked for, and dead still. How many there
        are decides the size of AuxK's codes, which the host has to know. It asks every
        DEAD_EVERY updates, whatever is logged; in between a size stays.
        """
        if self._has_aux and self.step % DEAD_EVERY == 0:
            is_dead = self.silent_rows > self.dead_rows
            self.listed = is_dead.nonzero()[:, 0]
        if not len(self.listed):
            return self.listed
        # 3, 5, 8 are listed; once 5 has fired, AuxK is given 3, -6, 8
        still = self.silent_rows.index_select(0, self.listed) > self.dead_rows
        return torch.where(still, self.listed, ~self.listed)

    def _pieces(self, rows: ScaledRows) -> list[ScaledRows]:
        """Return micro-batches of rows, with what is kept of the whole batch."""
        if self.spec.accumulate == 1:
            return [rows]
        # it is found block by block: no more pre-activations are kept than in a step
        with self._computing(), torch.no_grad():
            rows = self.sae.selected(rows, self.parallel.parts)
        return micro_batches(
            rows, self.spec.accumulate, some_empty=self.parallel.uneven_rows
        )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Go around forwards, with the spec's kernels and precision."""
        reduced = self.spec.precision == "bfloat16"
        with (
            using(self._products),
            torch.autocast(self._device.type, torch.bfloat16, enabled=reduced),
        ):
            yield

    def _reducing(self, last: bool) -> AbstractContextManager[None]:
        if not last:
            return nullcontext()
        return self.parallel.reducing(self.sae.parameters())

    def _revive(self) -> None:
        """Lift the biases of dead latents until they fire.

        Each update lifts them by the peak learning rate.
        """
        if self.spec.revive:
            dead = self.silent_rows > self.dead_rows
            latents_of(self.sae).lift_biases(dead, self.lr)

    @torch.no_grad()
    def reconstruction(self, rows: ScaledRows) -> Tensor:
        """Return the reconstruction [B, d_out] of rows as the SAE sees them.

        It is that of a training step with the weights as they are.
        """
        none_dead = self.silent_rows.new_zeros(0)  # AuxK is no part of it
        reconstructions = []
        for piece in self._pieces(rows):
            with self._computing():
                step = self._forward(piece, 1.0, none_dead)
            reconstructions.append(step.reconstruction)
        return torch.cat(reconstructions)

    def forget(self, latents: Tensor) -> None:
        """Begin anew with latents int64 [n] that were given new weights.

        Adam's moments are 0 again, and they count as alive.
        """
        self.silent_rows[latents] = 0
        inner = latents_of(self.sae)
        for name, parameter in inner.named_parameters():
            axis = inner.latent_axis.get(name)
            if axis is None:
                continue
            for value in self.optimiser.state[parameter].values():
                # the moments, not the number of updates
                if value.shape == parameter.shape:
                    value.index_fill_(axis, latents, 0.0)

    @torch.no_grad()
    def _count(self, rows: ScaledRows, result: Step) -> None:
        """Add a step to the running sums."""
        n = len(rows.x)
        difference = result.reconstruction.float() - rows.wanted
        error = difference.square().sum(dim=-1)
        if rows.layer is None:
            # aligned rows: error is [B, n_sites]
            error_by_site = error.sum(dim=0)
            by_layer = torch.stack([error_by_site, n * self.variance])
        else:
            variance = self.variance.index_select(0, rows.layer)
            both = torch.stack([error, variance], dim=1)
            by_layer = sums_by_layer(both, rows.layer, len(self.variance)).T
        # back to original units, which the stored variance is in: at a scale of 0.5 an
        # error of 1 is one of 1 / 0.25 = 4
        by_layer[0] /= self.scale_out.square()
        means = {"loss": result.loss, "l0": result.l0, **result.parts}
        self._add(self.parallel.totals(n, result.fired, means, by_layer))

    def _add(self, totals: Totals) -> None:
        means = dict(totals.means)
        self.silent_rows.add_(totals.rows)
        self.silent_rows.masked_fill_(totals.fired > 0, 0)
        self.seen += totals.rows
        self.density.add(totals, self.step)
        self.sums["steps"] += 1
        self.sums["rows"] += totals.rows
        if self.steering is not None:
            means["penalty"] = self.steering.weight
            share = learning_rate(self.spec.optimiser, self.step, self.steps)
            rise = self.steering.update(means["l0"], share)
            inner = latents_of(self.sae)
            inner.raise_thresholds(rise * inner.margin_std)
        self.by_layer += totals.by_layer
        for name, value in means.items():
            if name not in self.sums:
                self.sums[name] = self._zero()
            self.sums[name] += value

    def finite(self) -> bool:
        """Return whether weights, and losses since the last interval, are finite.

        It takes one transfer from the device.
        """
        # a sum with one NaN or infinity in it is none itself
        tensors = [*self.sae.parameters(), self.sums["loss"]]
        each = [tensor.detach().isfinite().all() for tensor in tensors]
        all_finite = bool(torch.stack(each).all())
        return self.parallel.agreed(all_finite)

    def reset_sums(self) -> None:
        """Begin a new interval."""
        self.sums: dict[str, Tensor] = {name: self._zero() for name in SUMS}
        self.by_layer = torch.zeros(
            2, len(self.variance), dtype=torch.float64, device=self._device
        )

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._device)

    def interval(self) -> Interval:
        """Return the interval's means, and begin a new one.

        It takes one transfer from the device, and one more for a histogram.
        """
        # one tensor of all numbers: each transfer waits for the device
        all_sums = [*self.sums.values(), self.seen.double()]
        sums = torch.stack(all_sums)
        numbers = torch.cat([sums, self.by_layer.flatten()]).tolist()
        names = [*self.sums, "seen"]
        values = dict(zip(names, numbers, strict=False))
        layer_numbers = numbers[len(names) :]
        by_layer = torch.tensor(layer_numbers, dtype=torch.float64).reshape(2, -1)
        error, variance = by_layer.sum(dim=1).tolist()
        n_steps = max(values["steps"], 1.0)
        parts = {
            name: value / n_steps
            for name, value in values.items()
            if name not in {*SUMS, "seen"}
        }
        dead = int((self.silent_rows > self.dead_rows).sum())
        layers = [
            fvu(of_layer, variance_of_layer) if variance_of_layer else None
            for of_layer, variance_of_layer in by_layer.T.tolist()
        ]
        density = None
        if self.density.is_due(self.step):
            density = self.density.histogram(self.parallel)
        self.reset_sums()
        return Interval(
            rows=int(values["seen"]),
            loss=values["loss"] / n_steps,
            mse=error / (values["rows"] or math.nan),
            l0=values["l0"] / n_steps,
            fvu=fvu(error, variance),
            dead=self.parallel.n_latents(dead),
            layers=layers,
            parts=parts,
            density=density,
        )

    def state(self) -> dict[str, Tensors]:
        """Return all that `restore` needs besides the step.

        It is the tensors of each of a checkpoint's files, by the files' names. Of a
        split dictionary they are this process's part.
        """
        listed = torch.zeros_like(self.silent_rows).index_fill_(0, self.listed, 1)
        latents = {
            "silent_rows": self.silent_rows,
            "listed": listed,
            "seen": self.seen,
            "random_state": torch.get_rng_state(),
            **self.density.state(),
        }
        if self.steering is not None:
            latents["steering"] = self.steering.state
        weights = {}
        for name, tensor in self.sae.state_dict().items():
            weights[name] = tensor.detach().contiguous()
        files = {
            "weights": weights,
            "optimiser": self._optimiser_state(),
            "latents": latents,
            "sums": {**self.sums, "by_layer": self.by_layer},
        }
        if self.average is not None:
            files["average"] = self.average.state()
        return files

    def restore(self, step: int, files: Callable[[str], Tensors]) -> None:
        """Put the learner where it was at a step.

        Args:
            step: Updates until then.
            files: From a name that `state` has to its tensors; asked for one after the
                other, so that they need not be in memory together.
        """
        self.sae.load_state_dict(files("weights"))
        if self.average is not None:
            self.average.restore(files("average"))
        latents = files("latents")
        self.silent_rows.copy_(latents["silent_rows"])
        is_listed = latents["listed"].to(self._device)
        self.listed = is_listed.nonzero()[:, 0]
        self.seen.copy_(latents["seen"])
        self.density.restore(latents)
        if self.steering is not None:
            self.steering.state.copy_(latents["steering"])
        torch.set_rng_state(latents["random_state"])
        sums = dict(files("sums"))
        self.by_layer.copy_(sums.pop("by_layer"))
        self.sums = {name: value.to(self._device) for name, value in sums.items()}
        self._restore_optimiser(files("optimiser"))
        self.step = step

    def _optimiser_state(self) -> Tensors:
        """Return Adam's state by parameter name: `W_dec.exp_avg`, ...

        Empty before the first step.
        """
        tensors = {}
        for name, parameter in self.sae.named_parameters():
            for field, value in self.optimiser.state[parameter].items():
                tensors[f"{name}.{field}"] = value
        return tensors

    def _restore_optimiser(self, tensors: Tensors) -> None:
        parameters = dict(self.sae.named_parameters())
        for name, value in tensors.items():
            parameter_name, _, field = name.rpartition(".")
            parameter = parameters.get(parameter_name)
            if parameter is None:
                continue
            if value.ndim:
                # in the parameter's own memory layout: the fused step goes by it
                restored = torch.empty_like(parameter).copy_(value)
            else:
                restored = value.to(parameter.device)
            self.optimiser.state[parameter][field] = restored


def penalty_of(sae: SaeSpec) -> tuple[float, float | None]:
    """Return the given weight of the sparsity penalty, and the L0 it is steered to.

    The weight is 0 where none is given, the L0 None where it is not steered.
    """
    inner = inner_of(sae)
    return inner.penalty_weight or 0.0, inner.steered_l0


def _on(factors: Rescaling, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return scale float32 [n_sites] and mean [n_sites, d] on the device."""
    scale = torch.from_numpy(factors.scale).to(device, torch.float32)
    if factors.mean is None:
        return scale, None
    return scale, torch.from_numpy(factors.mean).to(device)


def _scaled(
    x: Tensor,
    scale: Tensor,
    mean: Tensor | None,
    layer: Tensor | None = None,
) -> Tensor:
    """Return (x - mean_l) * scale_l, float32.

    x: [B, d] with the layer of each row, or [B, n_sites, d].
    """
    if layer is not None:
        scale = scale.index_select(0, layer)
        mean = None if mean is None else mean.index_select(0, layer)
    # in float32 before the mean is taken off: half precision would round the rest
    wide = x.float() if mean is None else x.float() - mean
    return wide * scale[..., None]
