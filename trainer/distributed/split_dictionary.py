"""A dictionary split by latents over processes, for one that no single device can hold;
every process has all rows.

A process has columns of W_enc, rows of W_dec and what else is by latent; what is not
(b_dec, a hidden layer, a skip) is in all of them, and stays the same in all.
Reconstructions are sums of the processes' parts (`steps`). On disk a run looks as that
of one process: weights go through the lead's host memory, which must hold the
dictionary and, for a checkpoint, its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from schemas.sae import BatchTopK, Crosscoder, Matryoshka, SaeSpec, TopK, Transcoder
from schemas.train import TrainSpec
from trainer.distributed import split_steps
from trainer.distributed.parallel import Tensors, Totals
from trainer.distributed.processes import World
from trainer.errors import SaeError
from trainer.saes.build import LATENT_AXIS, Sae, build
from trainer.saes.ops import ScaledRows
from trainer.training.compiled_forward import Forward

AXIS = {**LATENT_AXIS, "silent_rows": -1, "listed": -1}


class SplitDictionary:
    """The part that each process has of one SAE. Raises SaeError for what cannot be
    trained so.
    """

    def __init__(
        self,
        world: World,
        spec: TrainSpec,
        d: int,
        n_sites: int,
        d_out: int | None = None,
    ) -> None:
        self.world, self._spec, self._sae = world, spec, spec.sae
        _refuse(spec, d, n_sites, d_out, world.size)
        self._sizes = [
            len(part)
            for part in torch.arange(self._sae.size(d)).tensor_split(world.size)
        ]

    @property
    def local(self) -> SaeSpec:
        """The spec of this process's part."""
        return _part_of(self._sae, self._sizes[self.world.rank])

    def forward_of(self, sae: Sae) -> Forward:
        latents = sum(self._sizes[: self.world.rank]), sum(self._sizes)
        return partial(split_steps.training_step, sae, self._sae, self.world, latents)

    def selected(self, sae: Sae, rows: ScaledRows) -> ScaledRows:
        return split_steps.selected(sae, self._sae, self.world, rows)

    def has_rows(self, n: int) -> bool:
        return n > 0

    def rows(self, n: int) -> int:
        return n

    def reducing(
        self,
        parameters: Iterable[nn.Parameter],  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def totals(self, n: int, fired: Tensor, means: Tensors, by_layer: Tensor) -> Totals:
        return Totals(n, fired, means, by_layer)

    @torch.no_grad()
    def clip(self, sae: nn.Module, limit: float) -> None:
        """As torch's clip_grad_norm_, with the squares of split gradients summed over
        processes.
        """
        gradients = {
            name: p.grad for name, p in sae.named_parameters() if p.grad is not None
        }
        squares = torch.zeros((), device=self.world.device)
        for name, gradient in gradients.items():
            if _axis(name) is not None:
                squares += gradient.norm().square()
        self.world.sum_(squares)
        for name, gradient in gradients.items():
            if _axis(name) is None:
                squares += gradient.norm().square()
        factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients.values():
            gradient.mul_(factor)

    def all_rows(self, tensor: Tensor) -> Tensor:
        return tensor

    def places(self, n: int) -> tuple[int, int]:
        counts = self.world.gather(torch.full((), n, device=self.world.device)).tolist()
        return sum(counts[: self.world.rank]), sum(counts)

    @torch.no_grad()
    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        total, n = self.world.sum_(
            vectors.new_tensor([float(vectors.norm(dim=1).sum()), len(vectors)])
        ).unbind()
        return torch.where(n > 0, total / n, 1.0)

    def agreed(self, good: bool) -> bool:
        return self.world.least(float(good)) > 0

    def latents(self, n: int) -> int:
        return self.world.total(n)

    def whole(self, tensors: Tensors) -> Tensors:
        return {
            name: self._joined(name, tensor.detach())
            for name, tensor in tensors.items()
        }

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        """The lead alone loads, and sends each process its part."""
        lead = self.world.lead
        tensors = load() if lead else {}
        described = {
            name: [str(t.dtype).removeprefix("torch."), list(t.shape)]
            for name, t in tensors.items()
        }
        out = {}
        for name, (dtype, shape) in self.world.shared(described).items():
            out[name] = self._part(
                name, tensors.pop(name) if lead else None, getattr(torch, dtype), shape
            )
        return out

    def _joined(self, name: str, tensor: Tensor) -> Tensor:
        axis = _axis(name)
        if axis is None or not tensor.ndim:
            return tensor.cpu()
        if not self.world.lead:
            self.world.send(tensor, 0)
            return tensor
        parts = [tensor.cpu()]
        for rank in range(1, self.world.size):
            shape = list(tensor.shape)
            shape[axis] = self._sizes[rank]
            parts.append(self.world.receive(tuple(shape), tensor.dtype, rank))
        return torch.cat(parts, dim=axis)

    def _part(
        self, name: str, tensor: Tensor | None, dtype: torch.dtype, shape: list[int]
    ) -> Tensor:
        axis = _axis(name) if shape else None
        if tensor is not None:
            parts = (
                [tensor] * self.world.size
                if axis is None
                else list(tensor.split(self._sizes, dim=axis))
            )
            for rank in range(1, self.world.size):
                self.world.send(parts[rank], rank)
            return parts[0].contiguous()
        if axis is not None:
            shape[axis] = self._sizes[self.world.rank]
        return self.world.receive(tuple(shape), dtype, 0)


def _axis(name: str) -> int | None:
    """Along which a tensor is split: `W_dec`, `inner.W_dec.exp_avg`; None where it is
    the same in all processes.
    """
    return AXIS.get(name.removeprefix("inner.").partition(".")[0])


def _part_of(sae: SaeSpec, n: int) -> SaeSpec:
    """The spec of n latents of a dictionary; k and prefixes are of the whole one, whose
    spec `steps` has too.
    """
    if isinstance(sae, Transcoder | Crosscoder):
        return sae.model_copy(update={"inner": _part_of(sae.inner, n)})
    update: dict[str, object] = {"n_latents": n}
    if isinstance(sae, TopK | BatchTopK | Matryoshka):
        update["k"] = min(sae.k, n)
    if isinstance(sae, Matryoshka):
        update["prefixes"] = (1.0,)
    return sae.model_copy(update=update)


def _refuse(
    spec: TrainSpec, d: int, n_sites: int, d_out: int | None, size: int
) -> None:
    sae = spec.sae
    if spec.compile:
        raise SaeError(
            "compile: the forward of a split dictionary is not compiled; leave"
            " `compile` out"
        )
    if sae.size(d) < size:
        raise SaeError(
            f"{sae.size(d)} latents cannot be split over {size} processes; start fewer"
        )
    with torch.device("meta"):
        build(sae, d, spec.seed, n_sites, d_out)  # the other checks
