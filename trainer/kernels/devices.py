"""The devices of this machine, and whether a tensor's numbers are at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from actstore.errors import first_line
from trainer.errors import KernelError


def on_host(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers can be read without waiting for a device.

    If so, sizes of other tensors may depend on them.

    tensor: [...], of any shape and dtype; its device alone counts.
    """
    return tensor.device.type == "cpu"


def usable(name: str | torch.device) -> torch.device:
    """Return a device by its name, such as `cpu` or `cuda:1`.

    Raises:
        KernelError: This machine has no such device.
    """
    try:
        device = torch.device(name)
        # Some missing devices can be named; only using them tells.
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise KernelError(
            f"device {str(name)!r} cannot be used: {first_line(error)}; wanted cpu, or"
            " cuda (cuda:1, ...) where torch finds a GPU"
        ) from error
    return device
