"""One stream, many learners: every SAE of a group sees the same batches, and the data is read once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from actstore.format.storage import Storage
from actstore.store import Store
from actstore.stream.batches import Stream
from actstore.stream.rescale import Rescaling, rescaling
from schemas.records import RunRecord, StepRecord
from schemas.train import TrainSpec
from trainer.errors import DivergedError, RunError
from trainer.saes.build import build
from trainer.training import checkpoint
from trainer.training.journal import Journal, Sinks
from trainer.training.learner import Interval, Learner
from trainer.training.resample import resample
from trainer.training.start import initialise
from trainer.training.streams import check_rows_fit, last_steps, n_steps, next_batch, of_one_store, shared_stream

if TYPE_CHECKING:
    from trainer.distributed.start import Together

OnCorrupt = Literal["error", "skip"]


@dataclass
class Run:
    """One SAE of a group: where it is written, and what trains it."""

    spec: TrainSpec
    storage: Storage
    learner: Learner
    journal: Journal
    sites: tuple[str, ...]

    @property
    def lead(self) -> bool:
        """Whether this process is the one that writes."""
        return self.learner.parallel is None or self.learner.parallel.world.lead


@dataclass
class Progress:
    """What a progress display shows."""

    step: int
    steps: int
    rows_per_s: float
    stall: float
    last: dict[str, Interval] = field(default_factory=dict)


Report = Callable[[Progress], None]


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
    on_corrupt: OnCorrupt = "error",
    resume: bool = False,
    report: Report | None = None,
    sinks: Sinks | None = None,
    together: Together | None = None,
) -> list[str]:
    """Train runs (URL -> spec) that share a stream; returns their URLs. Specs must agree on `shared_stream`.

    on_corrupt: "skip" goes on without rows of chunks that cannot be read. resume: each run goes on from its own last
    checkpoint; one that has ended is left as it is.
    sinks: makes what besides the journal gets a run's records, from its URL, its spec and the step it starts behind.
    together: the processes that train the same runs, all of which call this; only the lead writes and reports.
    """
    lead = together is None or together.world.lead
    storages = {url: prepare(url, spec, resume) if lead else Storage(url) for url, spec in specs.items()}
    shared = shared_stream(next(iter(specs.values())))
    parts = of_one_store(store, shared, storages, last_steps(storages)) if lead else []
    rank, size = (0, 1) if together is None else together.part
    if together is not None:
        parts, device = together.world.shared(parts), str(together.world.device)
        together = replace(together, skips=on_corrupt == "skip")
    for starts in parts:
        with (
            Stream(
                store, shared, device=device, threads=threads, on_corrupt=on_corrupt, rank=rank, world=size
            ) as stream,
            checkpoint.saying_how_to_resume([storages[url] for url in starts]),
        ):
            behind, step = min(starts.items(), key=lambda one: one[1])
            if step:  # first of all: it may read an extended store as it was
                stream.restore(checkpoint.stream_state(storages[behind], step))
            runs = [_run(stream, specs[url], storages[url], start, device, together) for url, start in starts.items()]
            if lead:
                for run in runs:  # only now: a spec that cannot be used leaves nothing behind
                    run.storage.put("spec.json", run.spec.to_json().encode())
            _begin(stream, runs, starts, together)
            _train(stream, runs, report if lead else None, sinks if lead else None)
    return list(specs)


def _begin(stream: Stream, runs: Sequence[Run], starts: dict[str, int], together: Together | None) -> None:
    new = [run.learner for run in runs if not starts[run.storage.url]]
    if together is None:
        initialise(stream, new)
    else:
        together.initialise(stream, new)
    for run in runs:
        if starts[run.storage.url]:
            checkpoint.restore(run.storage, run.learner, starts[run.storage.url])


def _train(stream: Stream, runs: Sequence[Run], report: Report | None, sinks: Sinks | None) -> None:
    try:
        for run in runs:
            run.journal.sinks = [] if sinks is None else sinks(run.storage.url, run.spec, run.learner.step)
        _loop(stream, runs, report)
        for run in runs:
            _finish(stream, run)
    finally:
        for run in runs:
            run.journal.close()


def _run(stream: Stream, spec: TrainSpec, storage: Storage, start: int, device: str, together: Together | None) -> Run:
    check_rows_fit(spec)
    store, kind, center = stream.store, spec.stream.rescale, spec.stream.center
    parallel = None if together is None else together.parallel(spec, stream.d, len(stream.sites), stream.d_target)
    own = spec.sae if parallel is None else parallel.local
    sae = build(own, stream.d, spec.seed, len(stream.sites), stream.d_target)
    factors = rescaling(store, stream.sites, kind, center)
    out = None if stream.targets is None else rescaling(store, stream.targets, kind, center)
    variance = torch.tensor([float(store.variance(site).sum()) for site in stream.targets or stream.sites])
    norms = layer_norms(store, stream.sites, factors)
    steps, place = n_steps(spec, stream), torch.device(device)
    learner = Learner(spec, sae, factors, variance, steps, place, norms, out, parallel)
    return Run(spec, storage, learner, Journal(storage, start), stream.sites)


def layer_norms(store: Store, sites: tuple[str, ...], factors: Rescaling) -> Tensor:
    """Mean norm of each site's rows as the SAE sees them, [n_sites]; centred rows: root mean square about the mean."""
    if factors.mean is None:
        norms = [store.norms[site].all.mean_norm for site in sites]
    else:
        norms = [math.sqrt(store.variance(site).sum()) for site in sites]
    return torch.tensor(norms, dtype=torch.float64) * torch.from_numpy(factors.scale)


def _loop(stream: Stream, runs: Sequence[Run], report: Report | None) -> None:
    steps = max(run.learner.steps for run in runs)
    step = min(run.learner.step for run in runs)
    began, stalled, since = time.perf_counter(), stream.stall_s, step
    progress = Progress(step, steps, 0.0, 0.0)
    parallel = runs[0].learner.parallel
    while step < steps and (batch := next_batch(stream, parallel)) is not None:
        active = [run for run in runs if run.learner.step == step < run.learner.steps]  # others are ahead, or done
        for run in active:
            run.learner.update(batch.x, batch.layer, batch.target, batch.place)
        resample(stream, [run.learner for run in active])
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
                _save(stream, run)
    _end_early(stream, [run for run in runs if run.learner.step < run.learner.steps], progress)


def _end_early(stream: Stream, runs: Sequence[Run], progress: Progress) -> None:
    """A harvest that was followed had fewer rows than planned."""
    for run in runs:
        if run.learner.sums["steps"]:
            _log(run, progress)
        _save(stream, run)


def _save(stream: Stream, run: Run) -> None:
    if not run.learner.finite():  # a checkpoint that is there is a good one
        raise _diverged(run, "the loss or the weights are no numbers any more")
    if run.lead:
        run.journal.write()  # first: resuming reads no more of it than up to its checkpoint, and needs all of that
    checkpoint.save(run.storage, run.learner, stream.state(), run.spec.keep)


def _log(run: Run, progress: Progress) -> Interval:
    interval, learner = run.learner.interval(), run.learner
    if not math.isfinite(interval.loss):
        raise _diverged(run, f"the loss is {interval.loss}")
    run.journal.add(
        StepRecord(
            step=learner.step,
            rows=interval.rows,
            loss=interval.loss,
            mse=interval.mse,
            l0=interval.l0,
            fvu=interval.fvu,
            dead=interval.dead,
            lr=learner.optimiser.param_groups[0]["lr"],
            rows_per_s=progress.rows_per_s,
            stall=progress.stall,
            layers=dict(zip(run.sites, interval.layers, strict=True)) if len(run.sites) > 1 else {},
            parts=interval.parts,
        )
    )
    return interval


def _diverged(run: Run, what: str) -> DivergedError:
    good = checkpoint.steps(run.storage)
    last = f"the last good checkpoint is step {good[-1]}" if good else "there is no checkpoint yet"
    return DivergedError(
        f"{run.storage.url}: {what} at step {run.learner.step}; {last}; "
        "lower the learning rate, or look for non-finite rows with `actstore norms`"
    )


def _finish(stream: Stream, run: Run) -> None:
    learner, store = run.learner, stream.store
    state = learner.sae.state_dict() if learner.average is None else learner.average.result(learner.sae)
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
        center=run.spec.stream.center,
        store=store.url,
        content_id=store.manifest.content_id,
        model=store.manifest.spec.model.name,
        name=run.spec.name,
        steps=learner.step,
        rows=int(learner.seen),
        seed=run.spec.seed,
        ema=run.spec.ema,
    )
    run.storage.put("sae.safetensors", save_tensors(tensors))
    run.storage.put("sae.json", record.to_json().encode())
