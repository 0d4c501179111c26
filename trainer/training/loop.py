"""One stream, many learners: every SAE of a group sees the same batches, and the data is read once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from safetensors.torch import save as save_tensors

from actstore.format.layout import permutation
from actstore.format.storage import Storage
from actstore.store import Store
from actstore.stream.batches import Stream
from actstore.stream.rescale import rescaling
from schemas.records import RunRecord, StepRecord
from schemas.stream import StreamSpec
from schemas.train import TrainSpec
from trainer.errors import DivergedError, RunError
from trainer.saes.build import build, initialise_from
from trainer.training import checkpoint
from trainer.training.journal import Journal
from trainer.training.learner import Interval, Learner

INIT_ROWS = 1 << 15
INIT_STAGE = 21  # of the key, so that no other draw shares it


@dataclass
class Run:
    """One SAE of a group: where it is written, and what trains it."""

    spec: TrainSpec
    storage: Storage
    learner: Learner
    journal: Journal


@dataclass
class Progress:
    """What a progress display shows."""

    step: int
    steps: int
    rows_per_s: float
    stall: float
    last: dict[str, Interval] = field(default_factory=dict)


Report = Callable[[Progress], None]


def shared_stream(spec: TrainSpec) -> StreamSpec:
    """The stream a run can share: in original units, for ever (the run counts its steps)."""
    update = {"rescale": "none", "center": False, "epochs": None, "limit_rows": None, "dtype": "float32"}
    return spec.stream.model_copy(update=update)


def prepare(url: str, spec: TrainSpec, resume: bool) -> Storage:
    """The run's folder. Raises RunError where another run, or anything else, lies there."""
    storage = Storage(url)
    if storage.exists("spec.json"):
        if TrainSpec.model_validate_json(storage.read("spec.json")) != spec:
            raise RunError(f"{url}: a run with another spec is there (see its spec.json); choose another --out")
        if not resume:
            raise RunError(f"{url}: this run is already there; --resume goes on with it, or choose another --out")
    elif not storage.is_empty():
        raise RunError(f"{url}: it is not empty and no run; choose another --out")
    return storage


def train_group(
    store: Store,
    specs: dict[str, TrainSpec],
    *,
    device: str = "cpu",
    threads: int | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> list[str]:
    """Train runs (URL -> spec) that share a stream; returns their URLs. Specs must agree on `shared_stream`."""
    storages = {url: prepare(url, spec, resume) for url, spec in specs.items()}
    with Stream(store, shared_stream(next(iter(specs.values()))), device=device, threads=threads) as stream:
        steps = {url: n_steps(spec, stream) for url, spec in specs.items()}
        common = set.intersection(*(set(checkpoint.steps(storage)) for storage in storages.values()))
        start = max(common, default=0)
        runs = [_run(store, stream, specs[u], storages[u], steps[u], start, device) for u in specs]
        for run in runs:  # only now: a spec that cannot be used leaves nothing behind
            run.storage.put("spec.json", run.spec.to_json().encode())
        if start:
            for run in runs:
                stream.restore(checkpoint.restore(run.storage, run.learner, start))
        else:
            _initialise(stream, runs)
        _loop(stream, runs, report)
        for run in runs:
            _finish(store, stream, run)
    return list(specs)


def n_steps(spec: TrainSpec, stream: Stream) -> int:
    """Optimiser steps of a run: its rows over the batch, or one epoch."""
    return stream.batches_per_epoch if spec.rows is None else math.ceil(spec.rows / spec.stream.batch)


def _run(store: Store, stream: Stream, spec: TrainSpec, storage: Storage, steps: int, start: int, device: str) -> Run:
    sae = build(spec.sae, stream.d, spec.seed)
    factors = rescaling(store, stream.sites, spec.stream.rescale, spec.stream.center)
    variance = torch.tensor([float(store.variance(site).sum()) for site in stream.sites])
    learner = Learner(spec, sae, factors, variance, steps, torch.device(device))
    return Run(spec, storage, learner, Journal(storage, start))


def _initialise(stream: Stream, runs: Sequence[Run]) -> None:
    """Decoders from the stream's first rows; the stream then begins again."""
    wanted = [run for run in runs if run.spec.init == "data"]
    if not wanted:
        return
    start, x, layer, n = stream.state(), [], [], 0
    need = min(INIT_ROWS, max(run.learner.sae.n_latents for run in wanted))
    while n < need:
        batch = next(stream)
        x.append(batch.x)
        layer.append(batch.layer)
        n += len(batch.x)
    for run in wanted:
        order = torch.from_numpy(permutation(n, run.spec.seed, INIT_STAGE))
        initialise_from(run.learner.sae, run.learner.scaled(torch.cat(x)[order], torch.cat(layer)[order]))
    stream.restore(start)


def _loop(stream: Stream, runs: Sequence[Run], report: Report | None) -> None:
    steps = max(run.learner.steps for run in runs)
    step = min(run.learner.step for run in runs)
    began, stalled, since = time.perf_counter(), stream.stall_s, step
    progress = Progress(step, steps, 0.0, 0.0)
    while step < steps:
        batch = next(stream)
        active = [run for run in runs if run.learner.step < run.learner.steps]
        for run in active:
            run.learner.update(batch.x, batch.layer)
        step += 1
        spec = runs[0].spec
        if step % spec.log_every == 0 or step == steps:
            now = time.perf_counter()
            progress.rows_per_s = (step - since) * spec.stream.batch / max(now - began, 1e-9)
            progress.stall = (stream.stall_s - stalled) / max(now - began, 1e-9)
            began, stalled, since = now, stream.stall_s, step
            for run in active:
                progress.last[run.storage.url] = _log(run, progress)
        progress.step = step
        if report is not None:
            report(progress)
        for run in active:
            if step % run.spec.checkpoint_every == 0 or run.learner.step == run.learner.steps:
                checkpoint.save(run.storage, run.learner, stream.state(), run.spec.keep)
                run.journal.write()


def _log(run: Run, progress: Progress) -> Interval:
    interval, learner = run.learner.interval(), run.learner
    if not math.isfinite(interval.loss):
        good = checkpoint.steps(run.storage)
        last = f"the last good checkpoint is step {good[-1]}" if good else "there is no checkpoint yet"
        raise DivergedError(
            f"{run.storage.url}: the loss is {interval.loss} at step {learner.step}; {last}; "
            "lower the learning rate, or look for non-finite rows with `actstore norms`"
        )
    run.journal.add(
        StepRecord(
            step=learner.step,
            rows=learner.step * run.spec.stream.batch,
            loss=interval.loss,
            mse=interval.mse,
            l0=interval.l0,
            fvu=interval.fvu,
            dead=interval.dead,
            lr=learner.optimiser.param_groups[0]["lr"],
            rows_per_s=progress.rows_per_s,
            stall=progress.stall,
            parts=interval.parts,
        )
    )
    return interval


def _finish(store: Store, stream: Stream, run: Run) -> None:
    learner, manifest = run.learner, store.manifest
    tensors = {name: value.detach().cpu().contiguous() for name, value in learner.sae.state_dict().items()}
    tensors["scale"] = learner.scale.cpu()
    if learner.mean is not None:
        tensors["mean"] = learner.mean.cpu()
    record = RunRecord(
        sae=run.spec.sae,
        d=stream.d,
        n_latents=learner.sae.n_latents,
        sites=stream.sites,
        rescale=run.spec.stream.rescale,
        center=run.spec.stream.center,
        store=store.url,
        content_id=manifest.content_id,
        model=manifest.spec.model.name,
        steps=learner.step,
        rows=learner.step * run.spec.stream.batch,
        seed=run.spec.seed,
    )
    run.storage.put("sae.safetensors", save_tensors(tensors))
    run.storage.put("sae.json", record.to_json().encode())
