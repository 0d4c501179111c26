"""Learning rate and sparsity over a run; pure functions of the step."""

from __future__ import annotations

from schemas.train import Optimiser


def learning_rate(spec: Optimiser, step: int, steps: int) -> float:
    """Share of the peak: linear warm-up, plateau, linear decay towards 0; `step` counts
    from 0.
    """
    warm, decay = round(spec.warmup * steps), round(spec.decay * steps)
    up = (step + 1) / warm if step < warm else 1.0
    down = (steps - step) / decay if steps - step < decay else 1.0
    return min(up, down)


def sparsity(spec: Optimiser, step: int, steps: int) -> float:
    """The sparsity penalty's share, from 0 to 1: linear warm-up, plateau, linear decay
    towards 0.
    """
    warm, decay = (
        round(spec.sparsity_warmup * steps),
        round(spec.sparsity_decay * steps),
    )
    up = step / warm if step < warm else 1.0
    down = (steps - step) / decay if steps - step < decay else 1.0
    return min(up, down)
