"""torch.compile of an architecture's forward, for the kinds it can help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from schemas.sae import BatchTopK, Crosscoder, Matryoshka, TopK, Transcoder
from trainer.errors import SaeError
from trainer.saes.build import Sae
from trainer.saes.ops import Rows, Step

Forward = Callable[[Rows, float, Tensor], Step]


def forward_of(sae: Sae, compiled: bool, uneven: bool = False) -> Forward:
    """The training step of an SAE; `uneven`: the number of rows changes from step to step.

    Raises SaeError for kinds whose time goes to sparse kernels, which stay as is.
    """
    if not compiled:
        return sae.training_step
    spec = sae.spec
    inner = spec.inner if isinstance(spec, Transcoder | Crosscoder) else spec
    if isinstance(inner, TopK | BatchTopK | Matryoshka):
        raise SaeError(
            f"compile: a {inner.kind} SAE runs on sparse kernels, which stay as they are; leave `compile` out"
        )
    draws: Any = getattr(sae, "draws", None) or getattr(getattr(sae, "inner", None), "draws", None)
    if draws is not None:  # it depends on the update's number, for which there must not be a graph each
        draws.generator, draws.normal = map(torch.compiler.disable, (draws.generator, draws.normal))
    made = torch.compile(sae.training_step, dynamic=None if uneven else False)

    def forward(rows: Rows, sparsity: float, dead: Tensor) -> Step:
        share: Any = torch.tensor(sparsity, device=rows.x.device)  # a number would be compiled in
        step: Step = made(rows._replace(place=None) if draws is None else rows, share, dead)
        return step

    return forward
