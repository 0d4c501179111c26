"""The weights that a run keeps from the middle of its training, and their SAEs.

There are two sorts. Snapshots are evenly spread over the run, as many as its spec asks
for, and hold what `sae.safetensors` holds. Checkpoints are the newest few, from which
training goes on; of their files those with weights are read here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from actstore.errors import CorruptError, ObjectError
from actstore.format.storage import Storage
from schemas.records import RunRecord
from trainer.errors import RunError
from trainer.runs.run_tensors import most_bytes, read_tensors
from trainer.runs.trained_sae import TrainedSae, load, with_tensors
from trainer.saes.unit_rows import normalise_rows

CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
ROWS = "rows"  # in a snapshot, the rows trained on until then


class Kept(NamedTuple):
    """An SAE from the middle of a run.

    Attributes:
        step: Optimiser steps until then.
        rows: Rows trained on until then.
        sae: The SAE, ready for use. Its thresholds are those of training, which are
            calibrated at its end only.
    """

    step: int
    rows: int
    sae: TrainedSae


def checkpoint_key(step: int) -> str:
    """Return the folder of a step's checkpoint, in the run's."""
    return f"{CHECKPOINTS}/step-{step:08d}"


def snapshot_key(step: int) -> str:
    """Return the file of a step's snapshot, in the run's folder."""
    return f"{SNAPSHOTS}/step-{step:08d}.safetensors"


def snapshot_steps(n_snapshots: int, n_steps: int) -> frozenset[int]:
    """Return the steps after which snapshots are written, the last one among them.

    Four snapshots of 10 steps come after 2, 5, 7 and 10.
    """
    return frozenset(
        max(1, n_steps * i // n_snapshots) for i in range(1, n_snapshots + 1)
    )


def kept_steps(storage: Storage) -> list[int]:
    """Return the steps of which a run has weights, ascending."""
    return sorted({*_snapshots(storage), *_checkpoints(storage)})


def load_kept(run: str, step: int, device: str | torch.device = "cpu") -> Kept:
    """Return the SAE of a finished run as it was after a step.

    Where the spec asks for averaged weights, they are the averaged ones of that step.

    Raises:
        RunError: The run has not ended, or its files do not fit its record.
    """
    storage = Storage(run)
    last = load(run)
    if step in _snapshots(storage):
        key = snapshot_key(step)
        tensors = _read(storage, key, last.record)
        rows = tensors.pop(ROWS, None)
        if rows is None:
            raise RunError(f"{run}/{key}: it has no tensor {ROWS}; copy it again")
        sae = with_tensors(last.record, tensors, f"{run}/{key}", run)
        return Kept(step, int(rows), sae.to(device))
    folder = checkpoint_key(step)
    weights = _read(storage, f"{folder}/weights.safetensors", last.record)
    latents = read_tensors(storage, f"{folder}/latents.safetensors", ("seen",))
    if last.record.ema is not None:
        weights |= _read(storage, f"{folder}/average.safetensors", last.record)
    tensors = {**weights, **_scales(last)}
    sae = with_tensors(last.record, tensors, f"{run}/{folder}", run)
    if last.record.ema is not None and sae.sae.unit_decoder:
        # A mean of unit vectors is shorter.
        normalise_rows(sae.sae.W_dec)
    return Kept(step, int(latents["seen"]), sae.to(device))


def _scales(sae: TrainedSae) -> dict[str, Tensor]:
    """Return the rescaling of a run, [...] by its names in `sae.safetensors`."""
    tensors = {
        "scale": sae.scale,
        "mean": sae.mean,
        "scale_out": sae.scale_out,
        "mean_out": sae.mean_out,
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _snapshots(storage: Storage) -> set[int]:
    pattern = rf"{SNAPSHOTS}/step-(\d+)\.safetensors"
    matches = (re.fullmatch(pattern, name) for name in storage.list(SNAPSHOTS))
    return {int(match[1]) for match in matches if match}


def _checkpoints(storage: Storage) -> set[int]:
    # What has no `state.json` is half of a checkpoint.
    pattern = rf"{CHECKPOINTS}/step-(\d+)/state\.json"
    matches = (re.fullmatch(pattern, name) for name in storage.list(CHECKPOINTS))
    return {int(match[1]) for match in matches if match}


def _read(storage: Storage, key: str, record: RunRecord) -> dict[str, Tensor]:
    where = f"{storage.url}/{key}"
    try:
        return read_tensors(storage, key, (), most_bytes(record, where))
    except CorruptError:  # a kind of ObjectError, but the object is there
        raise
    except ObjectError as error:
        raise RunError(f"{where}: it has gone meanwhile, try again ({error})") from None
