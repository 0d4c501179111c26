"""Have glibc keep freed memory, for a process that makes large tensors at every step.

Such a process should do this first.

With glibc's defaults every large block is mapped, faulted in and unmapped again at each
use; a small language model's forward on a CPU gains about half again by not doing so.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt, as malloc.h numbers them.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_USERS_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation.

    For the start of a process (a command line, a benchmark), never on import: it is the
    process' own choice. Nothing happens outside Linux' glibc, or where the user has set
    one of malloc's own environment variables.

    Returns:
        Whether glibc took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    if any(name in os.environ for name in _USERS_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = (
        (_M_MMAP_MAX, 0),  # no block is mapped on its own
        (_M_TRIM_THRESHOLD, 2**31 - 1),  # the heap is hardly ever given back
        (_M_TOP_PAD, 256 << 20),  # and grows by 256 MiB at a time
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
