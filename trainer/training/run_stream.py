"""What a run streams: the stream that it can share, whether its SAE fits that, how many
steps it takes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from actstore.format.storage import Storage
from actstore.store.store import Store
from actstore.stream.stream import Batch, Stream
from schemas.sae import Crosscoder, Penalised, Transcoder, inner_of
from schemas.stream import StreamSpec
from schemas.train import Optimiser, TrainSpec
from trainer.errors import SaeError
from trainer.training import checkpoint

if TYPE_CHECKING:
    from trainer.distributed.parallel import Parallel


def shared_stream(spec: TrainSpec) -> StreamSpec:
    """The stream a run can share: in original units, for ever (the run counts its
    steps).
    """
    update = {
        "rescale": "none",
        "center": False,
        "epochs": None,
        "limit_rows": None,
        "dtype": "float32",
    }
    return spec.stream.model_copy(update=update)


def check_rows_fit(spec: TrainSpec) -> None:
    """Raises SaeError where the SAE's kind wants other rows than `stream.mode` gives."""
    mode = spec.stream.mode
    if isinstance(spec.sae, Transcoder) and mode != "pairs":
        raise SaeError(
            "a transcoder needs the same tokens at several sites, in pairs of input"
            f" and output, but stream.mode is {mode}; set `stream.mode: pairs`,"
            " `stream.sites` (inputs) and `stream.targets` (outputs), or give"
            " --pairs-with"
        )
    if isinstance(spec.sae, Crosscoder) and mode != "aligned":
        raise SaeError(
            "a crosscoder needs the same tokens at several sites, side by side, but"
            f" stream.mode is {mode}; set `stream.mode: aligned`, or give --aligned"
        )
    if not isinstance(spec.sae, Transcoder | Crosscoder) and mode != "mixed":
        raise SaeError(
            f"stream.mode is {mode}, but a {spec.sae.kind} SAE trains on mixed rows; a"
            " transcoder trains on pairs, a crosscoder on aligned rows: set"
            " `sae.kind`, or leave the mode out"
        )


def check_l0(spec: TrainSpec, d: int) -> None:
    """Raises SaeError where a dictionary cannot have the L0 that its penalty is steered
    to, or a schedule would do nothing because it is steered.
    """
    inner, n_latents = inner_of(spec.sae), spec.sae.size(d)
    if not isinstance(inner, Penalised) or inner.steered_l0 is None:
        return
    plan, usual = spec.optimiser, Optimiser()
    if (plan.sparsity_warmup, plan.sparsity_decay) != (
        usual.sparsity_warmup,
        usual.sparsity_decay,
    ):
        raise SaeError(
            "sparsity_warmup and sparsity_decay are of a given penalty, but"
            f" {inner.kind}'s is steered to an L0 of {inner.steered_l0:g} from the"
            f" first update on; leave them out, or give {inner.weight}"
        )
    if inner.steered_l0 < n_latents:
        return
    raise SaeError(
        f"{inner.kind}: target_l0 is"
        f" {inner.steered_l0:g}{'' if inner.target_l0 else ' (its default)'}, but the"
        f" dictionary has {n_latents} latents (d {d}); lower it, or raise expansion"
    )


def n_steps(spec: TrainSpec, stream: Stream) -> int:
    """Optimiser steps of a run: its rows over the batch, or the stream's epochs (one if
    they are endless).

    At most what `limit_rows` of its own stream leaves.
    """
    own, batch = spec.stream, spec.stream.batch

    def batches(rows: int) -> int:  # that hold so many rows behind those skipped
        return math.ceil((own.skip_rows + rows) / batch) - own.skip_rows // batch

    if spec.rows is not None:
        steps = math.ceil(spec.rows / batch)
    elif own.skip_rows:
        steps = batches(
            max(1, (own.epochs or 1) * stream.rows_per_epoch - own.skip_rows)
        )
    else:
        steps = (own.epochs or 1) * stream.batches_per_epoch
    return steps if own.limit_rows is None else min(steps, batches(own.limit_rows))


def planned(specs: Iterable[TrainSpec], stream: Stream) -> list[str]:
    """What runs train on, a line for each length: rows, batches, and what was asked
    where that is another number.
    """
    lines = []
    for spec in specs:
        steps, batch = n_steps(spec, stream), spec.stream.batch
        rows, about = stream.rows_in(steps), "up to " if spec.stream.follow else ""
        asked = [n for n in (spec.rows, spec.stream.limit_rows) if n is not None]
        rounded = (
            f" ({min(asked):,} were asked)" if asked and min(asked) != rows else ""
        )
        lines.append(
            f"training: {about}{rows:,} rows{rounded} in {steps:,} batches of {batch:,}"
            f"{', an epoch ends with a smaller one' if rows < steps * batch else ''}"
        )
    return list(dict.fromkeys(lines))


def next_batch(stream: Stream, parallel: Parallel | None = None) -> Batch | None:
    """The next batch that has rows, here or in another process; None behind the end of
    a harvest that was followed.
    """
    for batch in stream:
        if len(batch.x) if parallel is None else parallel.has_rows(len(batch.x)):
            return batch
    return None


def last_steps(storages: dict[str, Storage]) -> dict[str, int]:
    """The step of each run's last checkpoint, 0 where there is none; runs that have
    ended are left out.
    """
    left = {
        url: storage
        for url, storage in storages.items()
        if not storage.exists("sae.json")
    }
    return {
        url: max(checkpoint.steps(storage), default=0) for url, storage in left.items()
    }


def of_one_store(
    store: Store, spec: StreamSpec, storages: dict[str, Storage], steps: dict[str, int]
) -> list[dict[str, int]]:
    """Runs (URL -> step) by the state of the store that they go on with: where it was
    extended since some of them began, these go on with what there was.
    """
    found: dict[str | None, dict[str, int]] = {}
    for url, step in steps.items():
        digest = checkpoint.stream_state(storages[url], step).store if step else None
        found.setdefault(digest, {})[url] = step
    if None in found and len(found) > 1:
        with Stream(store, spec) as stream:
            found.setdefault(stream.state().store, {}).update(found.pop(None))
    return list(found.values())
