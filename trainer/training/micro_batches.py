"""One optimiser step in several forward and backward passes, so that a large batch fits
into memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.saes.batch_topk import BatchTopKSae
from trainer.saes.build import Sae
from trainer.saes.crosscoder import CrosscoderSae
from trainer.saes.matryoshka import MatryoshkaSae
from trainer.saes.ops import ScaledRows, Step
from trainer.saes.transcoder import TranscoderSae


def micro_batches(
    rows: ScaledRows, n: int, some_empty: bool = False
) -> list[ScaledRows]:
    """ScaledRows cut into n pieces of about the same size; where there are fewer rows
    fewer, or some empty ones.
    """
    if n == 1:
        return [rows]
    n = n if some_empty else min(n, len(rows.x))

    def cut(values: Tensor | None) -> list[Tensor | None]:
        return [None] * n if values is None else list(values.tensor_split(n))

    batch_position = (
        torch.arange(len(rows.x))
        if rows.batch_position is None
        else rows.batch_position
    )
    pieces = zip(
        rows.x.tensor_split(n),
        cut(rows.layer),
        cut(rows.target),
        batch_position.tensor_split(n),
        strict=True,
    )
    made = [
        ScaledRows(x, layer, rows.norm, target, at) for x, layer, target, at in pieces
    ]
    if rows.chosen is None:
        return made
    chosen = rows.chosen.split([len(piece.x) for piece in made])
    return [piece._replace(chosen=own) for piece, own in zip(made, chosen, strict=True)]


@torch.no_grad()
def selected(sae: Sae, rows: ScaledRows) -> ScaledRows:
    """ScaledRows with what BatchTopK's selection keeps of the whole batch, so that
    micro-batches need not select; other kinds do so row by row, if at all. It is found
    block by block: no more pre-activations are kept than in a step.
    """
    inner = sae.inner if isinstance(sae, CrosscoderSae | TranscoderSae) else sae
    if not isinstance(inner, BatchTopKSae | MatryoshkaSae):
        return rows
    return rows._replace(
        chosen=inner.choose(
            sae.inner_rows(rows) if isinstance(sae, CrosscoderSae) else rows
        )
    )


def detached(step: Step) -> Step:
    """Without gradients."""
    parts = {name: value.detach() for name, value in step.parts.items()}
    return Step(
        step.loss.detach(),
        step.reconstruction.detach(),
        step.fired,
        step.l0.detach(),
        parts,
    )


def joined(steps: list[Step], sizes: list[int]) -> Step:
    """The step of a batch from those of its micro-batches: means weighted by rows,
    empty ones left out.
    """
    if 0 in sizes and any(sizes):
        steps, sizes = (
            [step for step, n in zip(steps, sizes, strict=True) if n],
            [n for n in sizes if n],
        )
    if len(steps) == 1 or not any(sizes):
        return steps[0]
    shares = [size / sum(sizes) for size in sizes]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(
            [value * share for value, share in zip(values, shares, strict=True)]
        ).sum(dim=0)

    return Step(
        mean([step.loss for step in steps]),
        torch.cat([step.reconstruction for step in steps]),
        torch.stack([step.fired for step in steps]).sum(dim=0),
        mean([step.l0 for step in steps]),
        {name: mean([step.parts[name] for step in steps]) for name in steps[0].parts},
    )
