"""The parts of a dictionary that is split by latents: every process has all rows."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.distributed.autograd_collectives import shared, summed
from trainer.distributed.processes import World
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.select_across_processes import batch_top_k_of_parts
from trainer.kernels.sparse_products import part_of
from trainer.kernels.topk_select import top_k_of_product
from trainer.saes.sparse_codes import Encoder


class LatentParts:
    """This process's latents, and the sums and selections over those of all.

    Parameters that are not by latent (the decoder's bias, a hidden layer, a
    transcoder's skip) are in all processes, and each of these computes their whole
    gradient. For the methods see `Parts`.
    """

    def __init__(self, world: World, first_latent: int) -> None:
        self._world = world
        self._first_latent = first_latent

    @property
    def first_latent(self) -> int:
        return self._first_latent

    def shared(self, whole: Tensor) -> Tensor:
        return shared(whole, self._world)

    def summed(self, part: Tensor) -> Tensor:
        return summed(part, self._world)

    def summed_together(self, parts: list[Tensor]) -> list[Tensor]:
        return list(summed(torch.stack(parts), self._world).unbind())

    def once(self, whole: Tensor) -> Tensor:
        # times 0, not zeros: all processes then take part in its gradient's sum
        return whole if self._world.lead else whole * 0

    def rows_of(self, weight: Tensor, latents: Tensor) -> Tensor:
        local = latents - self._first_latent
        here = (local >= 0) & (local < len(weight))
        # a latent of another process stands for some row here, which is not added
        stand_in = local.clamp(0, len(weight) - 1)
        rows = weight.index_select(0, stand_in)
        return self.summed(torch.where(here[:, None], rows, 0.0))

    def n_latents(self, here: int) -> int:
        return self._world.total(here)

    def count(self, here: Tensor) -> Tensor:
        return self._world.sum_(here)

    def any(self, here: Tensor) -> Tensor:
        return self._world.sum_(here.sum()) > 0

    def top_k(
        self, encoder: Encoder, k: int, among: Tensor | None = None
    ) -> tuple[Tensor, Pattern]:
        """Return those of each row's k largest pre-activations that are here.

        Each process sends the others its own k largest of a row. The k largest of all
        these are the row's, and all processes find the same ones. Values are [n]: n is
        how many are here.
        """
        n_latents = encoder.weight.shape[1]
        n_choices = n_latents if among is None else len(among)
        n_here = min(k, n_choices)
        # the most that any process gives: the smallest of the negatives, negated
        width = -int(self._world.least(-n_here))
        values, latents = _largest_here(encoder, n_here, among)
        # -inf fills up what a process with few latents gives, and is never chosen
        padded = values.new_full((len(values), width), -torch.inf)
        padded[:, :n_here] = values
        # [size, B, width] becomes [B, size * width]: side by side, by process
        of_all = self._world.gather(padded)
        of_all = of_all.movedim(0, 1).flatten(1)
        # with k = 2 the row (5, 1 | 4, 2) keeps columns 0 and 2, one of each process
        largest = of_all.topk(k, dim=-1, sorted=False).indices
        kept = torch.zeros_like(of_all, dtype=torch.bool)
        kept.scatter_(1, largest, True)
        first = self._world.rank * width
        kept_here = kept[:, first : first + n_here]
        row, column = kept_here.nonzero(as_tuple=True)
        pattern = Pattern.ragged(row, latents[row, column], encoder.n_rows, n_latents)
        chosen = Chosen(values[row, column], pattern)
        return encoder.at(chosen), pattern

    @torch.no_grad()
    def batch_top_k(self, encoder: Encoder, n: int) -> Chosen:
        """Return the largest of the batch that are among this process's latents."""
        n_latents = encoder.weight.shape[1]
        # a guess, from which the search begins
        n_here = min(n // self._world.size, encoder.n_rows * n_latents)
        values, rows, latents = batch_top_k_of_parts(
            encoder.centred,
            encoder.weight,
            encoder.bias,
            n,
            n_here,
            self._world,
        )
        return Chosen(values, Pattern.ragged(rows, latents, encoder.n_rows, n_latents))

    def least(self, here: Tensor) -> Tensor:
        return self._world.min_(here)


def _largest_here(
    encoder: Encoder, k: int, among: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row's latents here: values and latents [B, k]."""
    centred = encoder.centred
    if among is None:
        return top_k_of_product(centred, encoder.weight, encoder.bias, k)
    if not k:
        none = centred.new_zeros(len(centred), 0)
        return none, none.to(torch.int64)
    latents, weight, bias = part_of(encoder.weight, encoder.bias, among)
    values, local = top_k_of_product(centred, weight, bias, k)
    return values, latents[local]
