"""torch.compile of an architecture's forward, for the kinds it can help.

It cannot help the TopK kinds, whose time goes to the encoder's product, to selections
and to sparse products, which are fused by hand. Tried with torch 2.13, against eager
steps, with dead latents that change from step to step: traced with the kernels,
gradients are the same, but numbers of dead latents are compiled anew (32 graphs in 14
steps, then torch's limit is met), at twenty times the time of an eager step. With the
kernels kept out of the graphs there are 4 of them, whatever is dead, and what is left
to fuse is a few passes over [B, d]. By Inductor: topk 120 ms for 116, batch_topk 122
for 121, matryoshka 130 for 135 (forward and backward of 2048 rows of 512, 4096 latents,
k 32, a CPU; not yet on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from schemas.sae import BatchTopK, Crosscoder, Matryoshka, TopK, Transcoder
from trainer.errors import SaeError
from trainer.saes.build import Sae
from trainer.saes.ops import Penalty, ScaledRows, Step

Forward = Callable[[ScaledRows, Penalty, Tensor], Step]


def forward_of(sae: Sae, compiled: bool, uneven: bool = False) -> Forward:
    """The training step of an SAE; `uneven`: the number of rows changes from step to
    step.

    Raises SaeError for kinds whose time goes to sparse kernels, which stay as is.
    """
    if not compiled:
        return sae.training_step
    spec = sae.spec
    inner = spec.inner if isinstance(spec, Transcoder | Crosscoder) else spec
    if isinstance(inner, TopK | BatchTopK | Matryoshka):
        raise SaeError(
            f"compile: a {inner.kind} SAE runs on sparse kernels, which stay as they"
            " are; leave `compile` out"
        )
    draws: Any = getattr(sae, "draws", None) or getattr(
        getattr(sae, "inner", None), "draws", None
    )
    # it depends on the update's number, for which there must not be a graph each
    if draws is not None:
        draws.generator, draws.normal = map(
            torch.compiler.disable, (draws.generator, draws.normal)
        )
    made = torch.compile(sae.training_step, dynamic=None if uneven else False)

    def forward(rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:
        # a number would be compiled in
        share: Any = torch.as_tensor(penalty, device=rows.x.device)
        step: Step = made(
            rows._replace(batch_position=None) if draws is None else rows, share, dead
        )
        return step

    return forward
