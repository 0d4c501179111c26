"""Training steps of the TopK kinds whose dictionary is split by latents: selection over
the whole dictionary.

Each process finds its own part of the codes; all decode theirs, and sum the
reconstructions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.sae import BatchTopK, Matryoshka, TopK
from trainer.distributed.autograd_collectives import shared, summed
from trainer.distributed.processes import World
from trainer.kernels.nonzeros import Chosen, Pattern
from trainer.kernels.select_across_processes import batch_top_k_of_parts, rows_among
from trainer.kernels.sparse_products import decoded, part_of
from trainer.kernels.topk_select import top_k_of_product
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.matryoshka import MatryoshkaSae, prefix_ends
from trainer.saes.ops import ScaledRows, Step, of_layer, squared_error
from trainer.saes.sparse_codes import Encoder, fired, listed, lowest, prefix_decoded
from trainer.saes.topk import TopKSae

TopKKind = TopK | BatchTopK | Matryoshka
TopKKindSae = TopKSae | BatchTopKSae | MatryoshkaSae


def top_k_step(
    sae: TopKKindSae,
    spec: TopKKind,
    world: World,
    rows: ScaledRows,
    dead: Tensor,
    latents: tuple[int, int],
) -> Step:
    """As `steps.training_step`. latents: the first that is here, and the number in the
    whole dictionary.
    """
    encoder = Encoder(rows, sae.W_enc, sae.b_enc, shared(sae.b_dec, world), sae.shape)
    if isinstance(sae, TopKSae):
        values, pattern = _row_top_k(encoder, spec.k, world, None)
        values = values.relu()
    else:
        chosen = choose(sae, spec, world, rows) if rows.chosen is None else rows.chosen
        values, pattern = encoder.at(chosen), chosen.pattern
    bias = of_layer(sae.b_dec, rows.layer)
    if isinstance(spec, Matryoshka):
        ends = [
            min(max(0, end - latents[0]), pattern.n_latents)
            for end in prefix_ends(spec, latents[1])
        ]
        nested = (
            summed(torch.stack(prefix_decoded(values, sae.W_dec, pattern, ends)), world)
            + bias
        )
        errors = [squared_error(rows.wanted, one) for one in nested]
        reconstruction, parts = (
            nested[-1],
            {
                "mse": errors[-1],
                "prefixes": torch.stack(errors).mean(),
            },
        )
        loss = parts["prefixes"]
    else:
        reconstruction = summed(decoded(values, sae.W_dec, pattern), world) + bias
        parts = {"mse": squared_error(rows.wanted, reconstruction)}
        loss = parts["mse"]
    if spec.aux_coefficient:
        aux = _aux_k(
            encoder,
            (rows.wanted - reconstruction).detach(),
            dead,
            spec.aux_k,
            sae.W_dec,
            world,
        )
        if aux is not None:
            parts["aux"] = aux
            loss = loss + spec.aux_coefficient * aux
    return step_of(loss, reconstruction, fired(values, pattern), parts, world)


def step_of(
    loss: Tensor,
    reconstruction: Tensor,
    counts: Tensor,
    parts: dict[str, Tensor],
    world: World,
) -> Step:
    """From the counts of this process's latents, on how many rows each was above 0."""
    l0 = world.sum_(counts.sum()) / len(reconstruction)
    return Step(loss, reconstruction, counts, l0, parts)


@torch.no_grad()
def choose(
    sae: BatchTopKSae | MatryoshkaSae, spec: TopKKind, world: World, rows: ScaledRows
) -> Chosen:
    """This process's part of the k * B largest of the batch over the whole dictionary."""
    encoder = Encoder(rows, sae.W_enc, sae.b_enc, sae.b_dec, sae.shape)
    n, m, weight = spec.k * len(rows.x), sae.n_latents, encoder.weight
    here = min(n // world.size, len(rows.x) * m)
    values, row, latent = batch_top_k_of_parts(
        encoder.centred, weight, encoder.bias, n, here, world
    )
    chosen = Chosen(values, Pattern.ragged(row, latent, len(rows.x), m))
    layered = isinstance(sae, BatchTopKSae) and sae.spec.per_layer_threshold
    with rows_among(world):
        sae._lowest = lowest(
            *chosen, rows.layer if layered else None, len(sae.threshold)
        )
    return chosen


def _row_top_k(
    encoder: Encoder, k: int, world: World, among: Tensor | None
) -> tuple[Tensor, Pattern]:
    """This process's part of the k largest of each row over the whole dictionary, or
    over the latents `among`.

    Each process gives its own k largest of a row; the k largest of these are the row's,
    and all find the same ones.
    """
    m = encoder.weight.shape[1]
    own = min(k, m if among is None else len(among))
    width = -int(world.least(-own))
    values, latents = _largest_here(encoder, own, among)
    padded = values.new_full((len(values), width), -torch.inf)
    padded[:, :own] = values
    every = world.gather(padded).movedim(0, 1).flatten(1)
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen.scatter_(1, every.topk(k, dim=-1, sorted=False).indices, True)
    first = world.rank * width
    at = chosen[:, first : first + own].nonzero(as_tuple=True)
    pattern = Pattern.ragged(at[0], latents[at], encoder.n_rows, m)
    return encoder.at(Chosen(values[at], pattern)), pattern


def _largest_here(
    encoder: Encoder, own: int, among: Tensor | None
) -> tuple[Tensor, Tensor]:
    centred = encoder.centred
    if among is None:
        return top_k_of_product(centred, encoder.weight, encoder.bias, own)
    if not own:
        none = centred.new_zeros(len(centred), 0)
        return none, none.to(torch.int64)
    latents, weight, bias = part_of(encoder.weight, encoder.bias, among)
    values, local = top_k_of_product(centred, weight, bias, own)
    return values, latents[local]


def _aux_k(
    encoder: Encoder,
    error: Tensor,
    dead: Tensor,
    k: int | None,
    decoder: Tensor,
    world: World,
) -> Tensor | None:
    """AuxK with the dead of all processes; as `Encoder.aux_k`."""
    among = listed(dead)
    n_listed = world.total(len(among))
    if not n_listed:
        return None
    values, pattern = _row_top_k(
        encoder, min(k or max(1, error.shape[-1] // 2), n_listed), world, among
    )
    left = squared_error(error, summed(decoded(values.relu(), decoder, pattern), world))
    return torch.where(world.sum_((among >= 0).sum()) > 0, left, 0.0)
