"""Where a tensor is, as far as that decides how it is worked on, and which devices
there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actstore.errors import first_line
from trainer.errors import KernelError


def on_host(tensor: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device, so that sizes may
    depend on them.
    """
    return tensor.device.type == "cpu"


def usable(name: str | torch.device) -> torch.device:
    """A device by its name. Raises KernelError where this machine has none of it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise KernelError(
            f"device {str(name)!r} cannot be used: {first_line(error)}; wanted cpu, or"
            " cuda (cuda:1, ...) where torch finds a GPU"
        ) from error
    return device
