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

from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.errors import FullError
from actstore.format.json_records import parsed_json
from actstore.format.object_sizes import SMALL_JSON
from actstore.format.storage import Storage
from actstore.validation import validated
from schemas.stream import StreamState
from trainer.errors import RunError
from trainer.runs.kept_weights import CHECKPOINTS as FOLDER
from trainer.runs.kept_weights import checkpoint_key as key
from trainer.runs.run_tensors import read_tensors
from trainer.training.learner import Learner

BY_LAYER = "by_layer"  # among the sums, the only one that is not of a name


def steps(storage: Storage) -> list[int]:
    """Return the steps of the whole checkpoints, ascending."""
    return sorted(_steps_with(storage.list(FOLDER), "state.json"))


def _steps_with(names: Sequence[str], file: str = ".*") -> set[int]:
    """Return the steps in whose folders a file of that pattern is."""
    matches = (re.fullmatch(rf"{FOLDER}/step-(\d+)/{file}", name) for name in names)
    return {int(match[1]) for match in matches if match}


@contextmanager
def saying_how_to_resume(storages: Sequence[Storage]) -> Iterator[None]:
    """Say in a full disk's message what is left of the runs, and how they go on."""
    try:
        yield
    except FullError as full:
        last = [f"{storage.url}: {_last(storage)}" for storage in storages]
        raise FullError(
            f"{full}, then run the same command with --resume ({'; '.join(last)})"
        ) from full


def _last(storage: Storage) -> str:
    saved = steps(storage)
    if not saved:
        return "no checkpoint yet, it begins again"
    return f"it goes on from its checkpoint of step {saved[-1]}"


def save(storage: Storage, learner: Learner, stream: StreamState, keep: int) -> None:
    """Write a checkpoint of the learner's step, then remove all but the last `keep`.

    What killed processes left half-written is removed too. Of several processes, all
    call it and the lead writes; what it writes does not tell how many there were.
    """
    folder = key(learner.step)
    files = {
        name: learner.parallel.whole(tensors)
        for name, tensors in learner.state().items()
    }
    if not learner.parallel.world.lead:
        return
    for name, tensors in files.items():
        contiguous = {}
        for tensor_name, tensor in tensors.items():
            contiguous[tensor_name] = tensor.cpu().contiguous()
        storage.put(f"{folder}/{name}.safetensors", save_tensors(contiguous))
    # safetensors sorts them; in which order they came decides that of a journal's line
    sums = [name for name in files["sums"] if name != BY_LAYER]
    state = {"step": learner.step, "stream": stream.model_dump(), "sums": sums}
    text = json.dumps(state, indent=1) + "\n"
    storage.put(f"{folder}/state.json", text.encode())
    # Only now: until the new one is whole, the last one is what a run goes on from.
    names = storage.list(FOLDER)
    whole = sorted(_steps_with(names, "state.json"))
    kept = whole[-keep:]
    not_kept = _steps_with(names).difference(kept)
    for old in sorted(not_kept):
        remove(storage, old)


def remove(storage: Storage, step: int) -> None:
    """Take a checkpoint away.

    `state.json` goes first: what is killed in between leaves no checkpoint rather than
    a damaged one.
    """
    storage.delete(f"{key(step)}/state.json")
    for name in storage.list(key(step)):
        storage.delete(name)


def stream_state(storage: Storage, step: int) -> StreamState:
    """Return where the stream was at a step."""
    where = f"{storage.url}/{key(step)}/state.json"
    return validated(StreamState, _state(storage, step)["stream"], where)


def _state(storage: Storage, step: int) -> dict[str, Any]:
    """Return what `state.json` says.

    Raises:
        RunError: It is damaged.
    """
    name = f"{key(step)}/state.json"
    text = storage.read(name, SMALL_JSON)
    state = parsed_json(text, f"{storage.url}/{name}", RunError)
    if not isinstance(state, dict) or {*state} != {"step", "stream", "sums"}:
        raise RunError(
            f"{storage.url}/{name}: it is no checkpoint's state; remove that"
            " checkpoint, or copy it again"
        )
    return state


def restore(storage: Storage, learner: Learner, step: int) -> None:
    """Put a learner where it was at a step."""
    state = _state(storage, step)

    def read(name: str) -> dict[str, Tensor]:
        tensors = read_tensors(storage, f"{key(step)}/{name}.safetensors")
        if name == "sums":
            # in the order in which they came, which is that of a journal's line
            names = [*state["sums"], BY_LAYER]
            return {sum_name: tensors[sum_name] for sum_name in names}
        return tensors

    def own_part(name: str) -> dict[str, Tensor]:
        return learner.parallel.own(lambda: read(name))

    learner.restore(state["step"], own_part)
