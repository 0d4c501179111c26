"""Sends arrays from the host to a device without waiting for what the device does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; the copy may still be under way.

    From ordinary memory a copy to a GPU waits until all that was queued before it has
    ended. So it goes by way of page-locked memory, which torch keeps until the copy has
    been made, and uses again.

    Args:
        tensor: [...], of any shape and dtype, on the host.
        device: Where it goes. What the device is given to do afterwards sees it whole.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
