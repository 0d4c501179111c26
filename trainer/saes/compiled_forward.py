"""torch.compile of an architecture's forward, for the kinds it can help.

It cannot help the TopK kinds, whose time goes to the encoder's product, to selections
and to sparse products, which are fused by hand. Tried with torch 2.13, against eager
steps, with dead latents that change from step to step: traced with the kernels,
gradients are the same, but numbers of dead latents are compiled anew (32 graphs in 14
steps, then torch's limit is met), at twenty times the time of an eager step. With the
kernels kept out of the graphs there are 4 of them, whatever is dead, and what is left
to fuse is a few passes over [B, d]. By Inductor: topk 120 ms for 116, batch_topk 122
for 121, matryoshka 130 for 135 (forward and backward of 2048 rows of 512, 4096 latents,
k 32, a CPU; never tried on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.errors import SaeError
from trainer.saes.build import Sae
from trainer.saes.dictionary_parts import ONE_PART, Parts
from trainer.saes.scaled_rows import ScaledRows
from trainer.saes.step import Penalty, Step

Forward = Callable[[ScaledRows, Penalty, Tensor], Step]
"""A training step of rows, with a penalty's weight and the dead latents."""


def forward_of(
    sae: Sae,
    compiled: bool,
    uneven: bool = False,
    parts: Parts = ONE_PART,
) -> Forward:
    """Return the training step of an SAE.

    Args:
        sae: The SAE.
        compiled: By torch.compile.
        uneven: The number of rows changes from step to step.
        parts: The processes that have parts of the dictionary or the batch.

    Raises:
        SaeError: It is to be compiled, and its time goes to sparse kernels, which stay
            as they are.
    """
    if not compiled:
        return partial(sae.training_step, parts=parts)
    latents = sae.latents_part
    if latents.sparse:
        raise SaeError(
            f"compile: a {latents.spec.kind} SAE runs on sparse kernels, which stay as"
            " they are; leave `compile` out"
        )
    draws: Any = latents.draws
    # what is drawn depends on the update's number: traced, each update would have a
    # graph of its own
    if draws is not None:
        draws.generator = torch.compiler.disable(draws.generator)
        draws.normal = torch.compiler.disable(draws.normal)
    # None lets torch go over to a graph of any size once it has seen two sizes; False
    # keeps it from that where only an epoch's last batch is smaller
    dynamic = None if uneven else False
    step_of = torch.compile(sae.training_step, dynamic=dynamic)

    def forward(rows: ScaledRows, penalty: Penalty, dead: Tensor) -> Step:
        # a number would be compiled in, and warm-up changes it at every step
        weight: Any = torch.as_tensor(penalty, device=rows.x.device)
        # positions matter to draws alone; a graph would be guarded by them for nothing
        if draws is None:
            rows = rows._replace(batch_position=None)
        step: Step = step_of(rows, weight, dead, parts)
        return step

    return forward
