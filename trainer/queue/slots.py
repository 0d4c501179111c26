"""The slots of this machine: where one pass at a time is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from trainer.errors import ServiceError

# The share of a GPU that a pass may take; the rest is CUDA's own.
SHARE = 0.9
NO_LIMIT = 1 << 62
# Asked of a process of its own: CUDA, once begun, would take memory of every GPU for as
# long as the service runs.
_ASK_GPUS = (
    "import json, torch;"
    "gpus = [torch.cuda.get_device_properties(i).total_memory"
    " for i in range(torch.cuda.device_count())];"
    "print(json.dumps(gpus))"
)
_ASK_S = 120.0


class Slot(NamedTuple):
    """A place where one pass at a time is trained."""

    name: str
    """`cuda:0`, `cpu-1`."""
    device: str
    """The device, as a pass is given it."""
    memory_bytes: int
    """What a pass may take."""
    environment: Mapping[str, str]
    """Variables that keep a process to the slot."""


def machine_slots(device: str = "auto", n: int | None = None) -> list[Slot]:
    """Return the slots of this machine.

    Args:
        device: "cuda": each visible GPU is one. "cpu": the cores are. "auto": GPUs,
            where there are some.
        n: How many slots: that many GPUs, or parts of the cores; None: all GPUs, or one
            slot of all cores.

    Raises:
        ServiceError: There are no GPUs, or not so many.
    """
    if n is not None and n < 1:
        raise ServiceError(f"--slots {n}: wanted 1 or more")
    gpus = [] if device == "cpu" else gpu_memory()
    if not gpus and device != "cuda":
        return cpu_slots(n or 1)
    if not gpus:
        raise ServiceError("--device cuda: no GPU is visible here; give --device cpu")
    if n is not None and n > len(gpus):
        raise ServiceError(
            f"--slots {n}: {len(gpus)} GPUs are visible, and each is one slot"
        )
    return gpu_slots(gpus[:n], os.environ.get("CUDA_VISIBLE_DEVICES"))


def engine_slots(kind: str, device: str, n: int) -> list[Slot]:
    """Return slots on the machines of an engine, which finds the places itself.

    They are taken to have the memory that this machine has; where it has no GPU, that
    is not known, and sets no limit.

    Args:
        kind: The engine, such as `ray`.
        device: "cpu" or "cuda"; "auto": as this machine has them.
        n: How many passes at once.
    """
    gpus = [] if device == "cpu" else gpu_memory()
    if gpus or device == "cuda":
        device = "cuda"
        memory = min((int(SHARE * one) for one in gpus), default=NO_LIMIT)
    else:
        device = "cpu"
        memory = cpu_slots(1)[0].memory_bytes
    return [Slot(f"{kind}-{i}", device, memory, {}) for i in range(n)]


def cpu_slots(n: int) -> list[Slot]:
    """Return slots that share the cores and the memory that is free now."""
    from trainer.training.memory_estimate import usable_memory

    memory = usable_memory("cpu") // n
    if n == 1:
        return [Slot("cpu-0", "cpu", memory, {})]
    threads = max(1, _n_cores() // n)
    environment = {"OMP_NUM_THREADS": str(threads)}
    return [Slot(f"cpu-{i}", "cpu", memory, environment) for i in range(n)]


def gpu_slots(memory: list[int], visible: str | None) -> list[Slot]:
    """Return a slot for each GPU.

    Args:
        memory: The bytes that each has.
        visible: CUDA_VISIBLE_DEVICES, by which a process finds them; None: all.
    """
    names = visible.split(",") if visible else [str(i) for i in range(len(memory))]
    return [
        Slot(
            f"cuda:{i}",
            "cuda",
            int(SHARE * n_bytes),
            {"CUDA_VISIBLE_DEVICES": name.strip()},
        )
        for i, (n_bytes, name) in enumerate(zip(memory, names, strict=False))
    ]


def gpu_memory() -> list[int]:
    """Return the bytes of each visible GPU; none where there is no GPU."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_GPUS],
            capture_output=True,
            timeout=_ASK_S,
            check=True,
        )
        memory: list[int] = json.loads(asked.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return []
    return memory


def _n_cores() -> int:
    """Return how many cores this process may use."""
    # not every system can keep a process to some of its cores
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
