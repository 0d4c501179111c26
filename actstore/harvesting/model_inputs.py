"""The model's inputs for some sequences of a token block, and its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actstore.machine.to_device import to_device


def model_inputs(
    tokens: NDArray[np.int32], pad: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the token ids and the attention mask of some sequences, on a device.

    Args:
        tokens: int32 [b, t], -1 where there is padding.
        pad: The token id that the model is given where there is padding.
        device: Where ids and mask are put.

    Returns:
        ids: int64 [b, t].
        mask: int64 [b, t], 1 at a token and 0 at padding; None where nothing is padded.
    """
    is_token = tokens >= 0
    ids = np.where(is_token, tokens, pad).astype(np.int64)
    ids_on_device = to_device(torch.from_numpy(ids), device)
    if is_token.all():
        # Models take faster paths without a mask.
        return ids_on_device, None
    mask = to_device(torch.from_numpy(is_token.astype(np.int64)), device)
    return ids_on_device, mask


def autocast(dtype: str | None, device: torch.device) -> AbstractContextManager[object]:
    """Return torch.autocast in a spec's dtype.

    Without a dtype, it is a context that does nothing.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))
