"""How long torch's threads on a CPU wait for one another awake: what a command should
set before torch is loaded.

GNU's OpenMP, which torch brings on Linux, lets a thread that waits spin for
milliseconds. Beside other busy processes it so takes the core from the very thread that
it waits for. Training with two threads on two cores beside two busy processes (relu_l1,
1,024 latents, d 128, medians of three, 26 November 2026): 12,800 rows/s as it comes,
17,600 with OMP_WAIT_POLICY=PASSIVE, 20,400 with a short spin; on a quiet machine no
difference was found (47,500, 44,600 and 53,200 rows/s, which is the noise; topk 68,400,
71,700 and 71,100).
"""

from __future__ import annotations

import os

_SPINS = "2000"  # turns of the waiting loop
_OF_THE_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> bool:
    """Have threads that wait sleep soon; True where that was set, False where the user
    has said how they are to wait.

    For the start of a process, before torch is imported, never on import: it is the
    process' own choice.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    return True
