"""Limits how long torch's threads on a CPU stay awake while they wait.

A command should set it before torch is loaded.

GNU's OpenMP, which torch brings on Linux, lets a thread that waits spin for
milliseconds. Beside other busy processes it then takes the core from the very thread
that it waits for. Training with two threads on two cores beside two busy processes
(relu_l1, 1,024 latents, d 128, medians of three, 26 November 2026):

    as it comes                   12,800 rows/s
    OMP_WAIT_POLICY=PASSIVE       17,600
    a short spin, as here         20,400

On a quiet machine no difference was found (47,500, 44,600 and 53,200 rows/s, which is
the noise; topk 68,400, 71,700 and 71,100).
"""

from __future__ import annotations

import os

_SPINS = "2000"  # turns of the waiting loop
_USERS_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> bool:
    """Have threads that wait go to sleep soon.

    For the start of a process, before torch is imported, never on import: it is the
    process' own choice.

    Returns:
        True where that was set, False where the user has said how threads wait.
    """
    if any(name in os.environ for name in _USERS_VARIABLES):
        return False
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    return True
