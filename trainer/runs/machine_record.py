"""Keeps when a run was trained, with which versions, and on what machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.records import MachineRecord
from trainer.runs.run_files import read_json

KEY = "machine.json"


def this_machine(device: str) -> MachineRecord:
    """Return the record of this process: the time, the versions and the device."""
    import torch

    return MachineRecord(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        actstore=version("actstore"),
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        device=_name_of(device),
    )


def read_machine(run: str) -> MachineRecord | None:
    """Return what a run keeps about its machine; None where it keeps nothing.

    Raises:
        SpecError: What is there is no such record.
    """
    try:
        return read_json(Storage(run), KEY, MachineRecord)
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError:
        return None


def _name_of(device: str) -> str:
    """Return a device's name: `cpu`, `cuda (NVIDIA H100)`."""
    import torch

    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"
