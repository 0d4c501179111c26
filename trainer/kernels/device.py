"""Where a tensor is, as far as that decides how it is worked on."""

from __future__ import annotations

from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device, so that sizes may depend on them."""
    return tensor.device.type == "cpu"
