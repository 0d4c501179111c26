"""Gives the learning rate and the penalty over a run, as shares of their full values.

Both are pure functions of the step.
"""

from __future__ import annotations

from schemas.train import Optimiser


def learning_rate(spec: Optimiser, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step.

    It rises in a line, stays at 1, and falls in a line towards 0. With a warm-up of 4
    steps the first four shares are 1/4, 1/2, 3/4 and 1.

    Args:
        spec: Warm-up and decay, as shares of the run.
        step: The step, counted from 0.
        steps: Steps of the run.
    """
    warmup_steps = round(spec.warmup * steps)
    # counted from 1: a first step with a rate of 0 would change nothing
    rising = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    return min(rising, _falling(spec.decay, step, steps))


def sparsity(spec: Optimiser, step: int, steps: int) -> float:
    """Return the share of the penalty at a step.

    As the learning rate, but it begins at 0: with a warm-up of 4 steps the first four
    shares are 0, 1/4, 1/2 and 3/4.

    Args:
        spec: Warm-up and decay, as shares of the run.
        step: The step, counted from 0.
        steps: Steps of the run.
    """
    warmup_steps = round(spec.sparsity_warmup * steps)
    rising = step / warmup_steps if step < warmup_steps else 1.0
    return min(rising, _falling(spec.sparsity_decay, step, steps))


def _falling(decay: float, step: int, steps: int) -> float:
    """Return the share that the decay at a run's end leaves: 1 before it begins.

    decay: The decay's own share of the run.
    """
    decay_steps = round(decay * steps)
    steps_left = steps - step
    return steps_left / decay_steps if steps_left < decay_steps else 1.0
