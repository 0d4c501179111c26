"""When a group of runs saves besides its steps, and when it stops: at the same step in
all processes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from actstore.machine.stop_signals import Stop

if TYPE_CHECKING:
    from trainer.distributed.processes import World

AGREE_S = 1.0  # processes ask each other about so often
AGREE_STEPS = 1000  # and after so many steps at most


class Due(NamedTuple):
    """save: the last checkpoint is `minutes` old; stop: the number of a signal, 0 for
    none.
    """

    save: bool
    stop: int


class Timetable:
    """Asked behind every step. A process alone looks at its clock and its Stop, which
    costs nothing. Of several, the lead's clock counts and anyone's signal; they talk
    about it once a second or so.
    """

    def __init__(
        self,
        minutes: float,
        stop: Stop,
        step: int,
        n_steps: int,
        world: World | None = None,
    ) -> None:
        self._seconds, self._stop, self._world = 60 * minutes, stop, world
        self._saved, self._n_steps = time.monotonic(), n_steps
        self._asked, self._asked_at, self._next = step, time.monotonic(), step + 1

    def saved(self) -> None:
        """The group has just been saved."""
        self._saved = time.monotonic()

    def due(self, step: int) -> Due:
        """What is to be done behind a step."""
        if self._world is None:
            return Due(self._late(), self._stop.number or 0)
        if step < min(self._next, self._n_steps):
            return Due(False, 0)
        return self._agreed(step, self._world)

    def _late(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def _agreed(self, step: int, world: World) -> Due:
        # on the host: no device is waited for
        numbers = world.gather(torch.tensor(self._stop.number or 0))
        now, save = time.monotonic(), self._late()
        one = (now - self._asked_at) / (step - self._asked)
        ahead = max(1, min(AGREE_STEPS, int(AGREE_S / max(one, 1e-9))))
        save, ahead = world.shared([save, ahead])
        self._asked, self._asked_at, self._next = step, now, step + ahead
        return Due(save, int(numbers.max()))
