"""Training steps of a dictionary split by latents: the same loss in every process, gradients for its own latents.

Two maps are between the parts (as in Shoeybi et al. 2019, "Megatron-LM"): `summed` adds what the processes computed
and hands the gradient on as it is; `shared` hands a tensor on as it is and adds the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from schemas.sae import BatchTopK, JumpRelu, ReluL1, SaeSpec, TopK
from trainer.distributed.world import World
from trainer.kernels.pattern import Pattern
from trainer.kernels.peers import batch_top_k_of_parts, rows_among
from trainer.kernels.select import top_k_of_product
from trainer.kernels.sparse import decoded, encoded
from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.build import Sae
from trainer.saes.codes import Encoder, fired, lowest
from trainer.saes.jumprelu import Jump, JumpReluSae
from trainer.saes.ops import Rows, Step, encoder_input, of_layer, squared_error
from trainer.saes.relu_l1 import ReluL1Sae
from trainer.saes.topk import TopKSae


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, world: World) -> Tensor:  # noqa: ARG004 (autograd wants it)
        return world.sum_(part.float().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradients[0], None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum_(gradients[0].clone(memory_format=torch.contiguous_format)), None


def summed(part: Tensor, world: World) -> Tensor:
    """The sum of the processes' parts, float32, which all go on with alike."""
    out: Tensor = _Summed.apply(part, world)  # type: ignore[no-untyped-call]
    return out


def shared(tensor: Tensor, world: World) -> Tensor:
    """A tensor that all processes have alike, on the way into what each computes for itself."""
    out: Tensor = _Shared.apply(tensor, world)  # type: ignore[no-untyped-call]
    return out


def training_step(sae: Sae, spec: SaeSpec, world: World, rows: Rows, sparsity: float, dead: Tensor) -> Step:
    """The architecture's own training step, of this process's latents; `spec` is that of the whole dictionary.

    `dead` bool [m] and `Step.fired` are of this process's latents, the other fields of all.
    """
    match sae, spec:
        case ReluL1Sae(), ReluL1():
            return _relu_l1(sae, spec, world, rows, sparsity)
        case JumpReluSae(), JumpRelu():
            return _jumprelu(sae, spec, world, rows, sparsity)
        case TopKSae() | BatchTopKSae(), TopK() | BatchTopK():
            return _top_k(sae, spec, world, rows, dead)
    raise AssertionError(f"{spec.kind} is refused before")


def _relu_l1(sae: ReluL1Sae, spec: ReluL1, world: World, rows: Rows, sparsity: float) -> Step:
    inputs = encoder_input(rows.x, shared(sae.b_dec, world), rows.layer, sae.shape)
    latents = (inputs @ sae.encoder + sae.b_enc).relu()
    reconstruction = summed(latents @ sae.W_dec, world) + of_layer(sae.b_dec, rows.layer)
    weighted = latents if spec.penalty == "l1" else latents * sae.latent_norms
    parts = {
        "mse": squared_error(rows.wanted, reconstruction),
        "l1": summed(weighted.sum(dim=-1).mean(), world),
    }
    loss = parts["mse"] + spec.l1 * sparsity * parts["l1"]
    return _step(loss, reconstruction, (latents.detach() > 0).sum(dim=0), parts, world)


def _jumprelu(sae: JumpReluSae, spec: JumpRelu, world: World, rows: Rows, sparsity: float) -> Step:
    inputs = encoder_input(rows.x, shared(sae.b_dec, world), rows.layer, sae.shape)
    threshold = of_layer(sae.threshold, rows.layer)
    pre = inputs @ sae.W_enc + sae.b_enc
    latents, count, _ = Jump.apply(pre, threshold, spec.bandwidth)  # type: ignore[no-untyped-call]
    reconstruction = summed(latents @ sae.W_dec, world) + of_layer(sae.b_dec, rows.layer)
    mse, count = squared_error(rows.wanted, reconstruction), summed(count, world)
    loss = mse + spec.l0 * sparsity * count
    return _step(loss, reconstruction, (latents.detach() > 0).sum(dim=0), {"mse": mse}, world)


def _top_k(sae: TopKSae | BatchTopKSae, spec: TopK | BatchTopK, world: World, rows: Rows, dead: Tensor) -> Step:
    encoder = Encoder(rows, sae.W_enc, sae.b_enc, shared(sae.b_dec, world), sae.shape)
    if isinstance(sae, BatchTopKSae):
        values, pattern = _batch_top_k(encoder, spec.k * len(rows.x), world)
        layer = rows.layer if sae.spec.per_layer_threshold else None
        with rows_among(world):
            sae._lowest = lowest(values, pattern, layer, len(sae.threshold))
    else:
        values, pattern = _row_top_k(encoder, spec.k, world, None)
    values = values.relu() if isinstance(sae, TopKSae) else values
    reconstruction = summed(decoded(values, sae.W_dec, pattern), world) + of_layer(sae.b_dec, rows.layer)
    parts = {"mse": squared_error(rows.wanted, reconstruction)}
    loss = parts["mse"]
    if spec.aux_coefficient:
        aux = _aux_k(encoder, (rows.wanted - reconstruction).detach(), dead, spec.aux_k, sae.W_dec, world)
        if aux is not None:
            parts["aux"] = aux
            loss = loss + spec.aux_coefficient * aux
    return _step(loss, reconstruction, fired(values, pattern), parts, world)


def _step(loss: Tensor, reconstruction: Tensor, counts: Tensor, parts: dict[str, Tensor], world: World) -> Step:
    l0 = world.sum_(counts.sum()) / len(reconstruction)
    return Step(loss, reconstruction, counts, l0, parts)


def _centred(encoder: Encoder) -> Tensor:
    return encoder.x.detach() if encoder.shift is None else encoder.x.detach() - encoder.shift.detach()


def _differentiable(encoder: Encoder, values: Tensor, pattern: Pattern, centred: Tensor) -> Tensor:
    return encoded(encoder.x, encoder.shift, encoder.weight, encoder.bias, values, pattern, centred)


def _batch_top_k(encoder: Encoder, n: int, world: World) -> tuple[Tensor, Pattern]:
    """This process's part of the n largest of the batch over the whole dictionary."""
    centred, m = _centred(encoder), encoder.weight.shape[1]
    found = batch_top_k_of_parts(
        centred, encoder.weight, encoder.bias, n, min(n // world.size, len(centred) * m), world
    )
    pattern = Pattern.ragged(found[1], found[2], encoder.n_rows, m)
    return _differentiable(encoder, found[0], pattern, centred), pattern


def _row_top_k(encoder: Encoder, k: int, world: World, among: Tensor | None) -> tuple[Tensor, Pattern]:
    """This process's part of the k largest of each row over the whole dictionary, or over the latents `among`.

    Each process gives its own k largest of a row; the k largest of these are the row's, and all find the same ones.
    """
    centred, m = _centred(encoder), encoder.weight.shape[1]
    own = min(k, m if among is None else len(among))
    width = -int(world.least(-own))
    values, latents = _largest_here(encoder, centred, own, among)
    padded = values.new_full((len(values), width), -torch.inf)
    padded[:, :own] = values
    every = world.gather(padded).movedim(0, 1).flatten(1)
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen.scatter_(1, every.topk(k, dim=-1, sorted=False).indices, True)
    first = world.rank * width
    at = chosen[:, first : first + own].nonzero(as_tuple=True)
    pattern = Pattern.ragged(at[0], latents[at], encoder.n_rows, m)
    return _differentiable(encoder, values[at], pattern, centred), pattern


def _largest_here(encoder: Encoder, centred: Tensor, own: int, among: Tensor | None) -> tuple[Tensor, Tensor]:
    if among is None:
        return top_k_of_product(centred, encoder.weight, encoder.bias, own)
    if not own:
        none = centred.new_zeros(len(centred), 0)
        return none, none.to(torch.int64)
    values, local = top_k_of_product(centred, encoder.weight.T[among].T, encoder.bias[among], own)
    return values, among[local]


def _aux_k(
    encoder: Encoder, error: Tensor, dead: Tensor, k: int | None, decoder: Tensor, world: World
) -> Tensor | None:
    """AuxK with the dead of all processes; as `Encoder.aux_k`."""
    among = dead.nonzero()[:, 0]
    n_dead = world.total(len(among))
    if not n_dead:
        return None
    values, pattern = _row_top_k(encoder, min(k or max(1, error.shape[-1] // 2), n_dead), world, among)
    return squared_error(error, summed(decoded(values.relu(), decoder, pattern), world))
