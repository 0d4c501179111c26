"""Reads the decoders that the checkpoints of a run hold.

`trainer/training/checkpoint.py` writes checkpoints and goes on from them; here they are
only looked at.
"""

from __future__ import annotations

import re

from torch import Tensor

from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError
from trainer.runs.run_tensors import check_shapes, read_tensors

_STATE = re.compile(r"checkpoints/step-(\d+)/state\.json")
# A kind around another one keeps its weights under `inner.`.
_NAMES = ("W_dec", "inner.W_dec")


def checkpoint_steps(run: str) -> list[int]:
    """Return the steps of a run's whole checkpoints, ascending."""
    names = Storage(run).list("checkpoints")
    matches = (_STATE.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def decoder_at(run: str, record: RunRecord, step: int) -> Tensor:
    """Return the decoder that a run had at a checkpoint, float32 [m, d].

    Where the run keeps a moving average of its weights (`ema`), it is that average's.

    Args:
        run: The run's folder.
        record: Its record.
        step: One of `checkpoint_steps`.

    Raises:
        RunError: The checkpoint is damaged.
    """
    file = "weights" if record.ema is None else "average"
    key = f"checkpoints/step-{step:08d}/{file}.safetensors"
    tensors = read_tensors(Storage(run), key)
    for name in _NAMES:
        if name in tensors:
            decoder = tensors[name].float()
            d = record.d if record.d_out is None else record.d_out
            check_shapes({name: decoder}, (record.n_latents, d), f"{run}/{key}")
            return decoder
    raise RunError(f"{run}/{key}: it holds no decoder (W_dec); copy it again")
