"""A dictionary split by latents over processes, for one that no single device can hold; every process has all rows.

A process has columns of W_enc, rows of W_dec and what else is by latent; what is not (b_dec) is in all of them, and
stays the same in all. Reconstructions are sums of the processes' parts (`steps`). On disk a run looks as that of one
process: weights go through the lead's host memory, which must hold the dictionary and, for a checkpoint, its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from schemas.sae import BatchTopK, JumpRelu, ReluL1, SaeSpec, TopK
from schemas.train import TrainSpec
from trainer.distributed import steps
from trainer.distributed.parallel import Tensors, Totals
from trainer.distributed.world import World
from trainer.errors import SaeError
from trainer.saes.build import LATENT_AXIS, Sae, build
from trainer.training.compiled import Forward

Shardable = ReluL1 | TopK | BatchTopK | JumpRelu
AXIS = {**LATENT_AXIS, "silent_rows": -1}


class Shards:
    """The part that each process has of one SAE. Raises SaeError for what cannot be trained so."""

    def __init__(self, world: World, spec: TrainSpec, d: int, n_sites: int) -> None:
        self.world, self._spec = world, spec
        self._sae = _refuse(spec, d, n_sites, world.size)
        self._sizes = [len(part) for part in torch.arange(self._sae.size(d)).tensor_split(world.size)]

    @property
    def local(self) -> SaeSpec:
        """The spec of this process's part."""
        n = self._sizes[self.world.rank]
        update: dict[str, int] = {"n_latents": n}
        if isinstance(self._sae, TopK | BatchTopK):  # `steps` takes k from the spec of the whole
            update["k"] = min(self._sae.k, n)
        return self._sae.model_copy(update=update)

    def forward_of(self, sae: Sae) -> Forward:
        return partial(steps.training_step, sae, self._sae, self.world)

    def has_rows(self, n: int) -> bool:
        return n > 0

    def rows(self, n: int) -> int:
        return n

    def reducing(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:  # noqa: ARG002 (in `steps`)
        return nullcontext()

    def totals(self, n: int, fired: Tensor, means: Tensors, sums: Tensors) -> Totals:
        return Totals(n, fired, means, sums)

    @torch.no_grad()
    def clip(self, sae: nn.Module, limit: float) -> None:
        """As torch's clip_grad_norm_, with the squares of split gradients summed over processes."""
        gradients = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
        squares = torch.zeros((), device=self.world.device)
        for name, gradient in gradients.items():
            if name in AXIS:
                squares += gradient.norm().square()
        self.world.sum_(squares)
        for name, gradient in gradients.items():
            if name not in AXIS:
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
        total, n = self.world.sum_(vectors.new_tensor([float(vectors.norm(dim=1).sum()), len(vectors)])).unbind()
        return torch.where(n > 0, total / n, 1.0)

    def agreed(self, good: bool) -> bool:
        return self.world.least(float(good)) > 0

    def latents(self, n: int) -> int:
        return self.world.total(n)

    def whole(self, tensors: Tensors) -> Tensors:
        return {name: self._joined(name, tensor.detach()) for name, tensor in tensors.items()}

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        """The lead alone loads, and sends each process its part."""
        lead = self.world.lead
        tensors = load() if lead else {}
        described = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}
        out = {}
        for name, (dtype, shape) in self.world.shared(described).items():
            out[name] = self._part(name, tensors.pop(name) if lead else None, getattr(torch, dtype), shape)
        return out

    def _axis(self, name: str, ndim: int) -> int | None:
        """Along which a tensor is split: `W_dec`, `W_dec.exp_avg`; None where it is the same in all processes."""
        return AXIS.get(name.partition(".")[0]) if ndim else None

    def _joined(self, name: str, tensor: Tensor) -> Tensor:
        axis = self._axis(name, tensor.ndim)
        if axis is None:
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

    def _part(self, name: str, tensor: Tensor | None, dtype: torch.dtype, shape: list[int]) -> Tensor:
        axis = self._axis(name, len(shape))
        if tensor is not None:
            parts = [tensor] * self.world.size if axis is None else list(tensor.split(self._sizes, dim=axis))
            for rank in range(1, self.world.size):
                self.world.send(parts[rank], rank)
            return parts[0].contiguous()
        if axis is not None:
            shape[axis] = self._sizes[self.world.rank]
        return self.world.receive(tuple(shape), dtype, 0)


def _refuse(spec: TrainSpec, d: int, n_sites: int, size: int) -> Shardable:
    sae = spec.sae
    if not isinstance(sae, Shardable):
        can = ", ".join(kind.model_fields["kind"].default for kind in get_args(Shardable))
        raise SaeError(f"{sae.kind}: its dictionary cannot be split over processes; those of {can} can")
    if isinstance(sae, ReluL1) and sae.decoder_similarity:
        raise SaeError("decoder_similarity compares latents of all processes; leave it out of a split dictionary")
    if spec.compile:
        raise SaeError("compile: the forward of a split dictionary is not compiled; leave `compile` out")
    if sae.size(d) < size:
        raise SaeError(f"{sae.size(d)} latents cannot be split over {size} processes; start fewer")
    with torch.device("meta"):
        build(sae, d, spec.seed, n_sites)  # the other checks
    return sae
