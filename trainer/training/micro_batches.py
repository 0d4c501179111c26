"""Cuts a batch into micro-batches, so that an optimiser step takes less memory.

Each micro-batch has a forward and a backward pass of its own; their gradients add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.step import Step


def micro_batches(
    rows: ScaledRows, n: int, some_empty: bool = False
) -> list[ScaledRows]:
    """Return rows cut into n pieces of about the same size.

    Args:
        rows: A batch.
        n: How many pieces.
        some_empty: What to do if there are fewer rows than n. True: return n pieces, of
            which some are empty. False: return fewer pieces.

    Returns:
        The pieces, in the order of the rows.
    """
    if n == 1:
        return [rows]
    if not some_empty:
        n = min(n, len(rows.x))
    # The noise of a row depends on its position in the whole batch, so each piece takes
    # these positions with it.
    batch_position = rows.batch_position
    if batch_position is None:
        batch_position = torch.arange(len(rows.x))
    fields = zip(
        rows.x.tensor_split(n),
        _cut(rows.layer, n),
        _cut(rows.target, n),
        batch_position.tensor_split(n),
        strict=True,
    )
    pieces = []
    for x, layer, target, position in fields:
        pieces.append(ScaledRows(x, layer, rows.norm, target, position))
    if rows.selection is None:
        return pieces
    sizes = [len(piece.x) for piece in pieces]
    selections = rows.selection.split(sizes)
    return [
        piece._replace(selection=selection)
        for piece, selection in zip(pieces, selections, strict=True)
    ]


def _cut(values: Tensor | None, n: int) -> list[Tensor | None]:
    if values is None:
        return [None] * n
    return list(values.tensor_split(n))


def detached(step: Step) -> Step:
    """Return the same step, detached from autograd's graph."""
    return step._replace(
        loss=step.loss.detach(),
        reconstruction=step.reconstruction.detach(),
        l0=step.l0.detach(),
        parts={name: value.detach() for name, value in step.parts.items()},
    )


def joined(steps: list[Step], sizes: list[int]) -> Step:
    """Return the step of a batch from those of its micro-batches.

    Means are weighted by rows; empty pieces, whose means are NaN, are left out.

    Args:
        steps: At least one.
        sizes: How many rows each has.
    """
    if not any(sizes):
        return steps[0]
    steps = [step for step, size in zip(steps, sizes, strict=True) if size]
    sizes = [size for size in sizes if size]
    if len(steps) == 1:
        return steps[0]
    # Losses of 2 and 4 on 512 and 256 rows make a loss of 2 * 2/3 + 4 * 1/3 = 2.67.
    n_rows = sum(sizes)
    shares = [size / n_rows for size in sizes]

    def mean(values: list[Tensor]) -> Tensor:
        """Return the mean of one scalar per micro-batch, weighted by rows."""
        pairs = zip(values, shares, strict=True)
        weighted = [value * share for value, share in pairs]
        return torch.stack(weighted).sum(dim=0)

    terms = {}
    for name in steps[0].parts:
        terms[name] = mean([step.parts[name] for step in steps])
    fired = torch.stack([step.fired for step in steps])
    return Step(
        loss=mean([step.loss for step in steps]),
        reconstruction=torch.cat([step.reconstruction for step in steps]),
        fired=fired.sum(dim=0),
        l0=mean([step.l0 for step in steps]),
        parts=terms,
        # Each micro-batch has the value of the whole batch already.
        smallest_kept=steps[0].smallest_kept,
    )
