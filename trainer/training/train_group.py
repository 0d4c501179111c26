"""One stream, many learners: every SAE of a group sees the same batches, and the data
is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import save as save_tensors

from actstore.format.storage import Storage
from actstore.machine.stop_signals import Stop
from actstore.store.store import Store
from actstore.stream.stream import Stream
from schemas.base import differences
from schemas.records import RunRecord
from schemas.train import TrainSpec
from trainer.errors import RunError
from trainer.kernels.devices import usable
from trainer.runs.journal import Journal, Sinks
from trainer.runs.run_files import read_json
from trainer.runs.run_store import ORIGIN, check_same, origin_of
from trainer.saes.build import Sae, build
from trainer.training import checkpoint
from trainer.training.calibration import Result, calibrate
from trainer.training.inert_fields import check_acts
from trainer.training.init_from_data import initialise
from trainer.training.learner import Learner
from trainer.training.row_scaling import layer_norms, scaling
from trainer.training.run_stream import (
    check_l0,
    check_rows_fit,
    last_steps,
    n_steps,
    of_one_store,
    planned,
    shared_stream,
)
from trainer.training.step_loop import Progress, Report, Run, take_steps

if TYPE_CHECKING:
    from trainer.distributed.group_start import Together

__all__ = ["OnCorrupt", "Progress", "Report", "Run", "prepare", "train_group"]

OnCorrupt = Literal["error", "skip"]


def prepare(url: str, spec: TrainSpec, resume: bool) -> Storage:
    """The run's folder. Raises RunError where another run, or anything else, lies
    there.
    """
    storage = Storage(url)
    if storage.exists("spec.json"):
        there = read_json(storage, "spec.json", TrainSpec)
        # stores are told apart by content id, not by URL
        same = there.model_copy(update={"store": spec.store})
        if same != spec:
            differing = "; ".join(differences(spec, same))
            raise RunError(
                f"{url}: a run with another spec is there ({differing}); choose another"
                " --out, or give what it has"
            )
        if not resume:
            raise RunError(
                f"{url}: this run is already there; --resume goes on with it, or choose"
                " another --out"
            )
    elif not storage.is_empty():
        raise RunError(f"{url}: it is not empty and no run; choose another --out")
    return storage


def train_group(
    store: Store,
    specs: dict[str, TrainSpec],
    *,
    device: str = "cpu",
    threads: int | None = None,
    on_corrupt: OnCorrupt = "error",
    resume: bool = False,
    report: Report | None = None,
    sinks: Sinks | None = None,
    together: Together | None = None,
    stop: Stop | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[str]:
    """Train runs (URL -> spec) that share a stream; returns their URLs. Specs must
    agree on `shared_stream`.

    on_corrupt: "skip" goes on without rows of chunks that cannot be read. resume: each
    run goes on from its own last checkpoint; one that has ended is left as it is.
    sinks: makes what besides the journal gets a run's records, from its URL, its spec
    and the step it starts behind. together: the processes that train the same runs, all
    of which call this; only the lead writes and reports. tell: is given what is
    trained, in lines, before it begins. stop: once it has a signal, training ends
    behind a step, saves, and raises Stopped; in all processes, where one has.
    """
    stop = Stop() if stop is None else stop
    lead = together is None or together.world.lead
    storages = {
        url: prepare(url, spec, resume) if lead else Storage(url)
        for url, spec in specs.items()
    }
    for storage in storages.values() if lead else ():
        check_same(storage, store)
    shared = shared_stream(next(iter(specs.values())))
    parts = of_one_store(store, shared, storages, last_steps(storages)) if lead else []
    rank, size = (0, 1) if together is None else together.part
    if together is not None:
        parts, device = together.world.shared(parts), str(together.world.device)
        together = replace(together, skips=on_corrupt == "skip")
    for starts in parts:
        if together is None:
            stop.check()
        with (
            Stream(
                store,
                shared,
                device=device,
                threads=threads,
                on_corrupt=on_corrupt,
                rank=rank,
                world=size,
            ) as stream,
            checkpoint.saying_how_to_resume([storages[url] for url in starts]),
        ):
            behind, step = min(starts.items(), key=lambda one: one[1])
            if step:  # first of all: it may read an extended store as it was
                stream.restore(checkpoint.stream_state(storages[behind], step))
            runs = [
                _run(stream, specs[url], storages[url], start, device, together)
                for url, start in starts.items()
            ]
            if lead:
                # only now: a spec that cannot be used leaves nothing behind
                for run in runs:
                    _say_what_it_is(run, stream.store)
            _begin(stream, runs, starts, together)
            if lead and tell is not None:
                tell("\n".join(planned([run.spec for run in runs], stream)))
            _train(
                stream, runs, report if lead else None, sinks if lead else None, stop
            )
    return list(specs)


def _say_what_it_is(run: Run, store: Store) -> None:
    """The run's spec and its store, in its folder."""
    origin = origin_of(store, run.storage.url)
    run.storage.put(ORIGIN, origin.to_json().encode())
    run.storage.put(
        "spec.json",
        run.spec.model_copy(update={"store": origin.store}).to_json().encode(),
    )


def _begin(
    stream: Stream,
    runs: Sequence[Run],
    starts: dict[str, int],
    together: Together | None,
) -> None:
    new = [run.learner for run in runs if not starts[run.storage.url]]
    if together is None:
        initialise(stream, new)
    else:
        together.initialise(stream, new)
    for run in runs:
        if starts[run.storage.url]:
            run.end = checkpoint.stream_state(run.storage, starts[run.storage.url])
            checkpoint.restore(run.storage, run.learner, starts[run.storage.url])
            run.saved = run.learner.step


def _train(
    stream: Stream,
    runs: Sequence[Run],
    report: Report | None,
    sinks: Sinks | None,
    stop: Stop,
) -> None:
    try:
        for run in runs:
            run.journal.sinks = (
                []
                if sinks is None
                else sinks(run.storage.url, run.spec, run.learner.step)
            )
        with stop.held():
            take_steps(stream, runs, report, stop)
        results = [Result(run.learner, run.learner.result(), run.end) for run in runs]
        calibrate(stream, results)
        for run, result in zip(runs, results, strict=True):
            _save(stream, run, result.sae)
    finally:
        for run in runs:
            run.journal.close()


def _run(
    stream: Stream,
    spec: TrainSpec,
    storage: Storage,
    start: int,
    device: str,
    together: Together | None,
) -> Run:
    check_rows_fit(spec)
    check_l0(spec, stream.d)
    store = stream.store
    parallel = (
        None
        if together is None
        else together.parallel(spec, stream.d, len(stream.sites), stream.d_target)
    )
    own = spec.sae if parallel is None else parallel.local
    sae = build(own, stream.d, spec.seed, len(stream.sites), stream.d_target)
    factors, out = scaling(stream, spec.stream, sae.b_dec)
    variance = torch.tensor(
        [float(store.variance(site).sum()) for site in stream.targets or stream.sites]
    )
    norms = layer_norms(store, stream.sites, factors)
    steps, place = n_steps(spec, stream), usable(device)
    if not start:  # what has begun goes on
        check_acts(spec, len(stream.sites), steps)
    learner = Learner(spec, sae, factors, variance, steps, place, norms, out, parallel)
    return Run(spec, storage, learner, Journal(storage, start), stream.sites)


def _save(stream: Stream, run: Run, result: Sae) -> None:
    """The run's result and its record, by which it has ended."""
    learner, store = run.learner, stream.store
    state = result.state_dict()
    if learner.parallel is not None:
        state = learner.parallel.whole(state)
        if not run.lead:
            return
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    tensors["scale"] = learner.scale.cpu()
    if learner.mean is not None:
        tensors["mean"] = learner.mean.cpu()
    if stream.targets is not None:
        tensors["scale_out"] = learner.scale_out.cpu()
        if learner.mean_out is not None:
            tensors["mean_out"] = learner.mean_out.cpu()
    record = RunRecord(
        sae=run.spec.sae,
        d=stream.d,
        n_latents=run.spec.sae.size(stream.d),
        sites=stream.sites,
        targets=stream.targets or (),
        d_out=stream.d_target,
        rescale=run.spec.stream.rescale,
        center=learner.mean is not None,
        filter=run.spec.stream.filter,
        **origin_of(store, run.storage.url).model_dump(),
        model=store.manifest.spec.model.name,
        name=run.spec.name,
        steps=learner.step,
        rows=int(learner.seen),
        seed=run.spec.seed,
        ema=run.spec.ema,
        lr=learner.lr,
        dead_rows=learner.dead_rows,
        penalty=learner.penalty,
    )
    run.storage.put("sae.safetensors", save_tensors(tensors))
    run.storage.put("sae.json", record.to_json().encode())
