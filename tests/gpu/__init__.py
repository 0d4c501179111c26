"""What only a GPU can show; skipped where there is none (`make test-gpu`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs a GPU that torch can use"),
]
"""The marks of a file of such tests."""


@contextmanager
def noting_waits() -> Iterator[list[str]]:
    """Give a list of the times that the host waits for the GPU, as torch sees them."""
    waits: list[str] = []
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    texts = [f"{warning.filename}: {warning.message}" for warning in seen]
    waits += [text for text in texts if "called a synchronizing" in text]
