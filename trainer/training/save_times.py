"""Settles when a group of runs saves besides its steps, and when it stops.

All processes of a run save and stop at the same step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from actstore.machine.stop_signals import Stop
from trainer.distributed.world_of_one import ONE_WORLD, OneWorld

if TYPE_CHECKING:
    from trainer.distributed.processes import World

# Processes ask each other about once in so many seconds, and at least once in so many
# steps.
AGREE_S = 1.0
AGREE_STEPS = 1000


class Due(NamedTuple):
    """The things to do after a step.

    Attributes:
        save: Whether the last checkpoint has become too old.
        stop: The number of the signal that ends training, 0 for none.
    """

    save: bool
    stop: int


class Timetable:
    """Says after every step whether to save and whether to stop.

    A process alone looks at its clock and at its Stop, which costs nothing. Of several
    processes the lead's clock counts, and anyone's signal. To agree they have to talk,
    which they do about once a second.
    """

    def __init__(
        self,
        minutes: float,
        stop: Stop,
        step: int,
        n_steps: int,
        world: World | OneWorld = ONE_WORLD,
    ) -> None:
        """Begin before the first step of this process.

        Args:
            minutes: How old a checkpoint may become.
            stop: Knows whether a signal came.
            step: The step that training goes on from.
            n_steps: The last step, after which the processes talk in any case.
            world: The processes.
        """
        self._most_seconds = 60 * minutes
        self._stop = stop
        self._n_steps = n_steps
        self._world = world
        now = time.monotonic()
        self._saved_at = now
        self._asked_at = now
        self._asked_step = step
        self._next_step = step + 1  # after which the processes talk again

    def saved(self) -> None:
        """Note that the group has just been saved."""
        self._saved_at = time.monotonic()

    def due(self, step: int) -> Due:
        """Return what is to be done after a step."""
        if isinstance(self._world, OneWorld):
            return Due(self._is_late(), self._stop.number or 0)
        if step < min(self._next_step, self._n_steps):
            return Due(False, 0)
        return self._agreed(step, self._world)

    def _is_late(self) -> bool:
        return time.monotonic() - self._saved_at >= self._most_seconds

    def _agreed(self, step: int, world: World) -> Due:
        # Tensors on the host, so that no device is waited for.
        numbers = world.gather(torch.tensor(self._stop.number or 0))
        # after the exchange, in which this process may have waited for slower ones
        now = time.monotonic()
        seconds_per_step = (now - self._asked_at) / (step - self._asked_step)
        # At 0.1 s a step the processes talk again after 10 steps.
        steps_ahead = int(AGREE_S / max(seconds_per_step, 1e-9))
        steps_ahead = max(1, min(AGREE_STEPS, steps_ahead))
        save, steps_ahead = world.shared([self._is_late(), steps_ahead])
        self._asked_at = now
        self._asked_step = step
        self._next_step = step + steps_ahead
        return Due(save, int(numbers.max()))
