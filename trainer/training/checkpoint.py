"""Checkpoints: a folder of safetensors and JSON at any fsspec URL; nothing is pickled.

`state.json` is written last: a folder without it is no checkpoint. Weights (and their
moving average), optimiser, latent ages, rows seen, running sums, random state and the
stream's state are in it, so a resumed run goes on bit by bit on the same hardware. What
is drawn (noise, resampling) is a function of the seed and the step, and needs no state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.errors import FullError
from actstore.format.json_records import parsed_json
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.validation import validated
from schemas.stream import StreamState
from trainer.errors import RunError
from trainer.runs.run_tensors import read_tensors
from trainer.training.learner import Learner

FOLDER = "checkpoints"


def key(step: int) -> str:
    return f"{FOLDER}/step-{step:08d}"


def steps(storage: Storage) -> list[int]:
    """Steps of the whole checkpoints, ascending."""
    return sorted(_steps_with(storage.list(FOLDER), "state.json"))


def _steps_with(names: Sequence[str], file: str = ".*") -> set[int]:
    """Steps in whose folders such a file is."""
    found = (re.fullmatch(rf"{FOLDER}/step-(\d+)/{file}", name) for name in names)
    return {int(match[1]) for match in found if match}


@contextmanager
def saying_how_to_resume(storages: Sequence[Storage]) -> Iterator[None]:
    """A full disk's message says what is left of the runs, and how they go on."""
    try:
        yield
    except FullError as full:
        last = [f"{storage.url}: {_last(storage)}" for storage in storages]
        raise FullError(
            f"{full}, then run the same command with --resume ({'; '.join(last)})"
        ) from full


def _last(storage: Storage) -> str:
    found = steps(storage)
    return (
        f"it goes on from its checkpoint of step {found[-1]}"
        if found
        else "no checkpoint yet, it begins again"
    )


def save(storage: Storage, learner: Learner, stream: StreamState, keep: int) -> None:
    """Write a checkpoint of the learner's step, then remove all but the last `keep`,
    and what killed processes left half-written. Of several processes, all call it and
    the lead writes; what it writes does not tell how many there were.
    """
    at = key(learner.step)
    parts = {
        "weights": _contiguous(learner.sae.state_dict()),
        "optimiser": _optimiser_tensors(learner),
        "latents": {
            "silent_rows": learner.silent_rows,
            "listed": (
                torch.zeros_like(learner.silent_rows).index_fill_(0, learner.listed, 1)
            ),
            "seen": learner.seen,
            "random_state": torch.get_rng_state(),
        },
        "sums": {**learner.sums, "by_layer": learner.by_layer},
    }
    if learner.steering is not None:
        parts["latents"]["steering"] = learner.steering.state
    if learner.average is not None:
        parts["average"] = learner.average.state_dict()
    if learner.parallel is not None:
        parts = {
            name: learner.parallel.whole(tensors) for name, tensors in parts.items()
        }
        if not learner.parallel.world.lead:
            return
    for name, tensors in parts.items():
        storage.put(
            f"{at}/{name}.safetensors",
            save_tensors({k: v.cpu().contiguous() for k, v in tensors.items()}),
        )
    state = {
        "step": learner.step,
        "stream": stream.model_dump(),
        "sums": list(learner.sums),
    }
    storage.put(f"{at}/state.json", (json.dumps(state, indent=1) + "\n").encode())
    names = storage.list(FOLDER)
    kept = sorted(_steps_with(names, "state.json"))[-keep:]
    for old in sorted(_steps_with(names).difference(kept)):
        remove(storage, old)


def remove(storage: Storage, step: int) -> None:
    """Take a checkpoint away, `state.json` first."""
    storage.delete(f"{key(step)}/state.json")
    for name in storage.list(key(step)):
        storage.delete(name)


def stream_state(storage: Storage, step: int) -> StreamState:
    """Where the stream was at a step."""
    where = f"{storage.url}/{key(step)}/state.json"
    return validated(StreamState, _state(storage, step)["stream"], where)


def _state(storage: Storage, step: int) -> dict[str, Any]:
    """What `state.json` says. Raises RunError where it is damaged."""
    name = f"{key(step)}/state.json"
    found = parsed_json(
        storage.read(name, SMALL_JSON), f"{storage.url}/{name}", RunError
    )
    if not isinstance(found, dict) or {*found} != {"step", "stream", "sums"}:
        raise RunError(
            f"{storage.url}/{name}: it is no checkpoint's state; remove that"
            " checkpoint, or copy it again"
        )
    return found


def restore(storage: Storage, learner: Learner, step: int) -> None:
    """Put a learner where it was at a step."""
    at = key(step)

    def tensors(name: str) -> dict[str, Tensor]:
        def load() -> dict[str, Tensor]:
            return read_tensors(storage, f"{at}/{name}.safetensors")

        return load() if learner.parallel is None else learner.parallel.own(load)

    state = _state(storage, step)
    learner.sae.load_state_dict(tensors("weights"))
    if learner.average is not None:
        learner.average.load_state_dict(tensors("average"))
    latents, device = tensors("latents"), learner.silent_rows.device
    learner.silent_rows.copy_(latents["silent_rows"])
    learner.listed = latents["listed"].to(device).nonzero()[:, 0]
    learner.seen.copy_(latents["seen"])
    if learner.steering is not None:
        learner.steering.state.copy_(latents["steering"])
    torch.set_rng_state(latents["random_state"])
    sums = tensors("sums")
    learner.sums = {name: sums[name].to(device) for name in state["sums"]}
    learner.by_layer.copy_(sums["by_layer"])
    _restore_optimiser(learner, tensors("optimiser"))
    learner.step = state["step"]


def _optimiser_tensors(learner: Learner) -> dict[str, Tensor]:
    """Adam's state by parameter name: `W_dec.exp_avg`, ...; empty before the first
    step.
    """
    out = {}
    for name, parameter in learner.sae.named_parameters():
        for field, value in learner.optimiser.state[parameter].items():
            out[f"{name}.{field}"] = value
    return out


def _restore_optimiser(learner: Learner, tensors: dict[str, Tensor]) -> None:
    for name, parameter in learner.sae.named_parameters():
        fields = {
            k.rpartition(".")[2]: v
            for k, v in tensors.items()
            if k.rpartition(".")[0] == name
        }
        state = learner.optimiser.state[parameter]
        # in the parameter's own memory layout: the fused step goes by it
        for field, value in fields.items():
            state[field] = (
                torch.empty_like(parameter).copy_(value)
                if value.ndim
                else value.to(parameter.device)
            )


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
