"""Settles the stream that a run can share, and how many steps it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from actstore.format.storage import Storage
from actstore.store.streamed_store import StreamedStore
from actstore.stream.stream import Batch, Stream
from schemas.sae import inner_of
from schemas.stream import StreamSpec
from schemas.train import Optimiser, TrainSpec
from trainer.distributed.learner_protocol import Parallel
from trainer.distributed.single_process import SINGLE_PROCESS
from trainer.errors import SaeError
from trainer.saes.build import kind_of
from trainer.training import checkpoint


def shared_stream(spec: TrainSpec) -> StreamSpec:
    """Return the stream that a run can share with others.

    It gives rows in original units and never ends: rescaling is up to each run, which
    also counts its own steps.
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
    """Check that `stream.mode` gives the rows that the kind of SAE needs.

    Raises:
        SaeError: It gives others.
    """
    kind = kind_of(spec.sae)
    mode = spec.stream.mode
    if mode == kind.stream_mode:
        return
    if kind.stream_mode != "mixed":
        raise SaeError(
            f"a {kind.name} needs {kind.wanted_rows}, but stream.mode is {mode};"
            f" {kind.mode_advice}"
        )
    raise SaeError(
        f"stream.mode is {mode}, but a {kind.name} SAE trains on mixed rows; a"
        " transcoder trains on pairs, a crosscoder on aligned rows: set `sae.kind`, or"
        " leave the mode out"
    )


def check_l0(spec: TrainSpec, d: int) -> None:
    """Check that an L0 that a penalty is steered to can be reached.

    Args:
        spec: The run.
        d: Width of the rows.

    Raises:
        SaeError: The dictionary is not larger than that L0, or the spec has a schedule
            of the penalty, which does nothing where the penalty is steered.
    """
    inner = inner_of(spec.sae)
    if inner.steered_l0 is None:
        return
    schedule = (spec.optimiser.sparsity_warmup, spec.optimiser.sparsity_decay)
    usual = Optimiser()
    if schedule != (usual.sparsity_warmup, usual.sparsity_decay):
        raise SaeError(
            "sparsity_warmup and sparsity_decay are of a given penalty, but"
            f" {inner.kind}'s is steered to an L0 of {inner.steered_l0:g} from the"
            f" first update on; leave them out, or give {inner.penalty_field}"
        )
    n_latents = spec.sae.size(d)
    if inner.steered_l0 >= n_latents:
        # One that was not given has to be explained: no file or option has it.
        given = "target_l0" in inner.model_dump(exclude_none=True)
        by_default = "" if given else " (its default)"
        raise SaeError(
            f"{inner.kind}: target_l0 is {inner.steered_l0:g}{by_default}, but the"
            f" dictionary has {n_latents} latents (d {d}); lower it, or raise expansion"
        )


def n_steps(spec: TrainSpec, stream: Stream) -> int:
    """Return how many optimiser steps a run takes.

    These are its rows over the batch, or the batches of its stream's epochs (of one
    epoch where they are endless), and at most what `limit_rows` of the stream leaves.

    Args:
        spec: The run.
        stream: A stream of its store.
    """
    batch = spec.stream.batch
    skipped = spec.stream.skip_rows
    epochs = spec.stream.epochs or 1

    def batches_with(rows: int) -> int:
        """Return how many batches hold so many rows after those that are skipped.

        Whole batches of skipped rows are left out, the rest of them is dropped from the
        first batch. With batches of 64 and 100 skipped rows, 92 rows are in 2 batches:
        28 of the batch that has rows 64 to 127, and 64 of the next.
        """
        return math.ceil((skipped + rows) / batch) - skipped // batch

    if spec.rows is not None:
        steps = math.ceil(spec.rows / batch)
    elif skipped:
        rows_left = epochs * stream.rows_per_epoch - skipped
        steps = batches_with(max(1, rows_left))
    else:
        steps = epochs * stream.batches_per_epoch
    if spec.stream.limit_rows is not None:
        steps = min(steps, batches_with(spec.stream.limit_rows))
    return steps


def planned(specs: Iterable[TrainSpec], stream: Stream) -> list[str]:
    """Return what runs train on, as a line for each length that some of them have.

    A line has the rows and batches, and the rows that were asked for where that is
    another number.
    """
    lines = []
    for spec in specs:
        steps = n_steps(spec, stream)
        batch = spec.stream.batch
        rows = stream.rows_in(steps)
        # A harvest that is followed may turn out to have fewer rows than planned.
        about = "up to " if spec.stream.follow else ""
        # the smaller of the two limits is what ends a run
        limits = (spec.rows, spec.stream.limit_rows)
        given = [n for n in limits if n is not None]
        asked = min(given, default=rows)
        rounded = f" ({asked:,} were asked)" if asked != rows else ""
        short_batch = (
            ", an epoch ends with a smaller one" if rows < steps * batch else ""
        )
        batches = "batch" if steps == 1 else "batches"
        lines.append(
            f"training: {about}{rows:,} rows{rounded} in {steps:,} {batches} of"
            f" {batch:,}{short_batch}"
        )
    return list(dict.fromkeys(lines))


def next_batch(stream: Stream, parallel: Parallel = SINGLE_PROCESS) -> Batch | None:
    """Return the next batch that has rows, here or in another process.

    None after the end of a harvest that was followed.
    """
    for batch in stream:
        if parallel.has_rows(len(batch.x)):
            return batch
    return None


def last_steps(storages: dict[str, Storage]) -> dict[str, int]:
    """Return the step of each run's last checkpoint, 0 where there is none.

    Runs that have ended are left out.
    """
    return {
        url: max(checkpoint.steps(storage), default=0)
        for url, storage in storages.items()
        if not storage.exists("sae.json")
    }


def of_one_store(
    store: StreamedStore,
    spec: StreamSpec,
    storages: dict[str, Storage],
    steps: dict[str, int],
) -> list[dict[str, int]]:
    """Divide runs by the state of the store that they go on with.

    Where the store was extended after some of them began, these go on with what there
    was at first, and cannot share a stream with runs that begin now.

    Args:
        store: The store as it is now.
        spec: The stream that the runs share.
        storages: The runs' folders, by URL.
        steps: The step that each run goes on from, by URL; 0 for a new one.

    Returns:
        The URLs and steps of each part.
    """
    by_state: dict[str | None, dict[str, int]] = {}
    for url, step in steps.items():
        state = checkpoint.stream_state(storages[url], step).store if step else None
        by_state.setdefault(state, {})[url] = step
    if None in by_state and len(by_state) > 1:
        # New runs share with those whose store is still as it was when they began.
        new_runs = by_state.pop(None)
        with Stream(store, spec) as stream:
            state_now = stream.state().store
        by_state.setdefault(state_now, {}).update(new_runs)
    return list(by_state.values())
