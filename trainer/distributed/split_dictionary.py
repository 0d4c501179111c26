"""A dictionary split by latents over processes, for one that no device can hold.

Every process has all rows. It has columns of W_enc, rows of W_dec and what else is by
latent; what is not (b_dec, a hidden layer, a skip) is in all of them, and stays the
same in all. Reconstructions are sums of the processes' parts (`latent_parts`). On disk
a run looks as that of one process: weights go through the lead's host memory, which
must hold the dictionary and, for a checkpoint, its moments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from schemas.train import TrainSpec
from trainer.distributed.latent_parts import LatentParts
from trainer.distributed.learner_protocol import Tensors
from trainer.distributed.processes import World
from trainer.distributed.several_processes import SeveralProcesses
from trainer.distributed.undivided import WholeBatch
from trainer.errors import SaeError
from trainer.saes.build import build
from trainer.saes.dictionary_parts import Parts

# of a checkpoint's tensors that are no weights, those that are by latent
_AGES_AXIS = {"silent_rows": -1, "listed": -1, "density_firings": -1}


class SplitDictionary(WholeBatch, SeveralProcesses):
    """The part that each process has of one SAE; it satisfies `Parallel`."""

    def __init__(
        self,
        world: World,
        spec: TrainSpec,
        d: int,
        n_sites: int,
        d_out: int | None = None,
    ) -> None:
        """Split the dictionary of a spec.

        Args:
            world: The processes.
            spec: The run's.
            d: Width of an activation.
            n_sites: Sites of a mixture or of a crosscoder's row.
            d_out: Width of a transcoder's target.

        Raises:
            SaeError: It cannot be trained so.
        """
        super().__init__(world)
        if spec.compile:
            raise SaeError(
                "compile: the forward of a split dictionary is not compiled; leave"
                " `compile` out"
            )
        n_latents = spec.sae.size(d)
        if n_latents < world.size:
            raise SaeError(
                f"{n_latents} latents cannot be split over {world.size} processes;"
                " start fewer"
            )
        # raises where the spec cannot work; on the meta device it takes no memory
        with torch.device("meta"):
            whole = build(spec.sae, d, spec.seed, n_sites, d_out)
        self._axes = {**whole.latents_part.latent_axis, **_AGES_AXIS}
        # 10 latents over 4 processes are 3, 3, 2 and 2
        pieces = torch.arange(n_latents).tensor_split(world.size)
        self._sizes = [len(piece) for piece in pieces]
        first_latent = sum(self._sizes[: world.rank])
        self.parts: Parts = LatentParts(world, first_latent)

    @property
    def latents_here(self) -> int:
        """The number of latents that this process builds."""
        return self._sizes[self.world.rank]

    @torch.no_grad()
    def clip(self, sae: nn.Module, limit: float) -> None:
        """Scale gradients as torch's clip_grad_norm_ does.

        The squares of split gradients are summed over processes, those of whole ones
        counted once.
        """
        gradients = {}
        for name, parameter in sae.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad
        squares = torch.zeros((), device=self.world.device)
        for name, gradient in gradients.items():
            if self._axis(name) is not None:
                squares += gradient.norm().square()
        self.world.sum_(squares)
        # after the sum: all processes have the same gradient at these
        for name, gradient in gradients.items():
            if self._axis(name) is None:
                squares += gradient.norm().square()
        # 1e-6 as torch has it, so that runs are equal up to rounding
        norm = squares.sqrt() + 1e-6
        factor = (limit / norm).clamp(max=1.0)
        for gradient in gradients.values():
            gradient.mul_(factor)

    def latent_positions(self, n: int) -> tuple[int, int]:
        here = torch.full((), n, device=self.world.device)
        counts = self.world.gather(here).tolist()
        return sum(counts[: self.world.rank]), sum(counts)

    @torch.no_grad()
    def mean_norm(self, vectors: Tensor) -> Tensor | float:
        sum_here = float(vectors.norm(dim=1).sum())
        here = vectors.new_tensor([sum_here, len(vectors)])
        norms, n = self.world.sum_(here).unbind()
        return torch.where(n > 0, norms / n, 1.0)

    def n_latents(self, here: int) -> int:
        return self.world.total(here)

    def latent_counts(self, here: Tensor) -> Tensor:
        return self.world.sum_(here)

    def whole(self, tensors: Tensors) -> Tensors:
        return {
            name: self._joined(name, tensor.detach())
            for name, tensor in tensors.items()
        }

    def own(self, load: Callable[[], Tensors]) -> Tensors:
        """Return this process's part; the lead alone loads, and sends each its own."""
        tensors = load() if self.world.lead else {}
        # who receives a tensor has to know its dtype and shape before it comes
        described = {}
        for name, tensor in tensors.items():
            dtype_name = str(tensor.dtype).removeprefix("torch.")
            described[name] = [dtype_name, list(tensor.shape)]
        described = self.world.shared(described)
        parts = {}
        for name, (dtype_name, shape) in described.items():
            if self.world.lead:
                # not kept longer than it takes to send it
                parts[name] = self._sent(name, tensors.pop(name))
            else:
                parts[name] = self._received(name, getattr(torch, dtype_name), shape)
        return parts

    def _joined(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the whole dictionary in the lead, from all processes."""
        axis = self._axis(name)
        if axis is None or not tensor.ndim:
            return tensor.cpu()
        if not self.world.lead:
            self.world.send(tensor, 0)
            return tensor
        # one after the other, by rank: parts are joined in their order
        parts = [tensor.cpu()]
        for rank in range(1, self.world.size):
            shape = list(tensor.shape)
            shape[axis] = self._sizes[rank]
            part = self.world.receive(tuple(shape), tensor.dtype, rank)
            parts.append(part)
        return torch.cat(parts, dim=axis)

    def _sent(self, name: str, tensor: Tensor) -> Tensor:
        """Send each process its part, and return that of the lead."""
        axis = self._axis(name) if tensor.ndim else None
        if axis is None:
            parts = [tensor] * self.world.size
        else:
            parts = list(tensor.split(self._sizes, dim=axis))
        for rank in range(1, self.world.size):
            self.world.send(parts[rank], rank)
        return parts[0].contiguous()

    def _received(self, name: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
        """Return the part that the lead sends, of a tensor of that shape."""
        axis = self._axis(name) if shape else None
        if axis is not None:
            shape[axis] = self._sizes[self.world.rank]
        return self.world.receive(tuple(shape), dtype, 0)

    def _axis(self, name: str) -> int | None:
        """Return the axis along which a tensor is split, None where it is not.

        Names are those of weights, or begin with them: `W_dec`, `inner.W_dec.exp_avg`.
        """
        weight = name.removeprefix("inner.").partition(".")[0]
        return self._axes.get(weight)
