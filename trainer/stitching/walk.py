"""The MSE and L0 on a way from one SAE to another, latents added and taken out jointly.

A row's residual is carried along: each step takes off what added latents reconstruct
and gives back what removed ones did. One pass costs as much as one reconstruction by
all latents of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.stitching.dictionary import Dictionary


class Step(NamedTuple):
    """One step.

    Attributes:
        added: Latents of b that are put in, int64 [p].
        removed: Latents of a that are taken out, int64 [q].
        cosine: The cosine up to which latents are in.
    """

    added: Tensor
    removed: Tensor
    cosine: float


class Walk(NamedTuple):
    """The figures before the first step, and after each.

    Attributes:
        mse: float64 [n_steps + 1].
        l0: float64 [n_steps + 1].
        size: Latents of the SAE, int64 [n_steps + 1].
        rows: Number of rows.
    """

    mse: NDArray[np.float64]
    l0: NDArray[np.float64]
    size: NDArray[np.int64]
    rows: int


@torch.no_grad()
def walk(
    a: Dictionary, b: Dictionary, steps: Sequence[Step], rows: Iterable[Tensor]
) -> Walk:
    """Return MSE, L0 and size on the way from a, with b's latents, over rows [n, d]."""
    errors = torch.zeros(len(steps) + 1, dtype=torch.float64)
    fired = torch.zeros(len(steps) + 1, dtype=torch.float64)
    n_rows = 0
    for x in rows:
        again, l0 = a.reconstruct(x)
        left = x - again
        n_firing = int(l0.sum())
        n_rows += len(x)
        errors[0] += float(left.double().square().sum())
        fired[0] += n_firing
        for number, step in enumerate(steps, start=1):
            for latents in step.added.split(8192):
                codes = b.encode(x, latents)
                left = left - codes @ b.W_dec[latents]
                n_firing += int((codes > 0).sum())
            for latents in step.removed.split(8192):
                codes = a.encode(x, latents)
                left = left + codes @ a.W_dec[latents]
                n_firing -= int((codes > 0).sum())
            errors[number] += float(left.double().square().sum())
            fired[number] += n_firing
    changes = [len(step.added) - len(step.removed) for step in steps]
    return Walk(
        mse=(errors / n_rows).numpy(),
        l0=(fired / n_rows).numpy(),
        size=a.n_latents + np.cumsum([0, *changes]),
        rows=n_rows,
    )


def added_in_order(latents: Tensor, cosines: Tensor, n_steps: int) -> list[Step]:
    """Return steps that add latents by ascending cosine, about as many in each.

    Args:
        latents: int64 [n].
        cosines: The cosine of each, [n].
        n_steps: Steps at most.
    """
    order = torch.argsort(cosines, stable=True)
    none = torch.zeros(0, dtype=torch.int64, device=latents.device)
    steps = []
    for part in torch.tensor_split(order, max(1, min(n_steps, len(order)))):
        if len(part):
            last = float(cosines[part[-1]])
            steps.append(Step(latents[part], none, last))
    return steps
