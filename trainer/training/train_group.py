"""Trains a group of runs in one pass: one stream, many learners.

Every SAE of a group sees the same batches, and the data is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from safetensors.torch import save as save_tensors

from actstore.catalog.names import is_name
from actstore.format.storage import Storage
from actstore.machine.stop_signals import Stop
from actstore.store.streamed_store import StreamedStore
from actstore.stream.stream import Stream
from schemas.base import differences
from schemas.records import RunRecord
from schemas.train import TrainSpec
from trainer.distributed.world_of_one import ONE_WORLD, OneWorld
from trainer.errors import RunError
from trainer.kernels.devices import usable
from trainer.runs import machine_record
from trainer.runs.journal import Journal, Sinks
from trainer.runs.run_files import read_json
from trainer.runs.run_store import ORIGIN, check_same, origin_of
from trainer.saes.build import Sae, build
from trainer.training import checkpoint, snapshot
from trainer.training.calibrate_group import Result, calibrate
from trainer.training.group_processes import GroupProcesses
from trainer.training.inert_fields import check_acts
from trainer.training.learner import Learner
from trainer.training.memory_estimate import check_weights_fit
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
    from trainer.distributed.processes import World

__all__ = ["OnCorrupt", "Progress", "Report", "Run", "prepare", "train_group"]

OnCorrupt = Literal["error", "skip"]


def prepare(url: str, spec: TrainSpec, resume: bool) -> Storage:
    """Return the run's folder.

    Raises:
        RunError: Another run is there, or anything else.
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
    store: StreamedStore,
    specs: dict[str, TrainSpec],
    *,
    device: str = "cpu",
    threads: int | None = None,
    on_corrupt: OnCorrupt = "error",
    resume: bool = False,
    report: Report | None = None,
    sinks: Sinks | None = None,
    world: World | OneWorld = ONE_WORLD,
    shard_dictionary: bool = False,
    stop: Stop | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[str]:
    """Train runs that share a stream; each is left finished in its folder.

    Args:
        store: Where the rows are.
        specs: The specs, by the URL of the run's folder. They must agree on
            `shared_stream`.
        device: Where one process trains; each of several has its own.
        threads: How many threads read and decode; None: as many as there are cores.
        on_corrupt: "skip" goes on without rows of chunks that cannot be read.
        resume: Each run goes on from its own last checkpoint; one that has ended is
            left as it is.
        report: Is given the progress after each step.
        sinks: Makes what besides the journal gets a run's records, from its URL, its
            spec and the step after which it starts.
        world: The processes that train the same runs, all of which call this; only the
            lead writes and reports.
        shard_dictionary: They split the dictionary rather than the batches.
        stop: Once it has a signal, training ends after a step and saves; in all
            processes, where one has.
        tell: Is given what is trained, in lines, before it begins.

    Returns:
        The runs' URLs.

    Raises:
        RunError: Another run is there, or anything else, or another process trains it.
        SaeError: A spec cannot be trained on these rows.
        Stopped: There was a signal.
    """
    stop = Stop() if stop is None else stop
    processes = GroupProcesses(world, shard_dictionary, on_corrupt == "skip")
    device = processes.device(device)
    storages: dict[str, Storage] = {}
    for url, spec in specs.items():
        # one process looks, and says once what is wrong
        storages[url] = prepare(url, spec, resume) if processes.lead else Storage(url)
    shared = shared_stream(next(iter(specs.values())))
    starts_of_parts: list[dict[str, int]] = []
    if processes.lead:
        for storage in storages.values():
            check_same(storage, store)
        starts_of_parts = of_one_store(store, shared, storages, last_steps(storages))
    # the lead's view of folders is that of all
    starts_of_parts = world.shared(starts_of_parts)
    rank, size = processes.batch_part
    for starts in starts_of_parts:
        if world.size == 1:
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
            # the stream begins with the run that has taken the fewest steps; the others
            # wait until it has come to theirs
            last_url, step = min(starts.items(), key=lambda start: start[1])
            if step:  # first of all: it may read an extended store as it was
                stream.restore(checkpoint.stream_state(storages[last_url], step))
            runs = [
                _run(stream, specs[url], storages[url], start, device, processes)
                for url, start in starts.items()
            ]
            if processes.lead:
                # only now: a spec that cannot be used leaves nothing there
                for run in runs:
                    _say_what_it_is(run, stream.store, device)
            _begin(stream, runs, starts, processes)
            if processes.lead and tell is not None:
                plan = planned([run.spec for run in runs], stream)
                tell("\n".join(plan))
            _train(
                stream,
                runs,
                report if processes.lead else None,
                sinks if processes.lead else None,
                stop,
            )
    return list(specs)


def _say_what_it_is(run: Run, store: StreamedStore, device: str) -> None:
    """Write the run's spec and where its store lies into its folder."""
    origin = origin_of(store, run.storage.url)
    run.storage.put(ORIGIN, origin.to_json().encode())
    spec = run.spec
    # A name is kept as it was asked for; `store.json` says where it has led to.
    if not is_name(spec.store):
        spec = spec.model_copy(update={"store": origin.store})
    run.storage.put("spec.json", spec.to_json().encode())
    # Of where it began: a run that goes on elsewhere keeps it.
    if not run.storage.exists(machine_record.KEY):
        machine = machine_record.this_machine(device)
        run.storage.put(machine_record.KEY, machine.to_json().encode())


def _begin(
    stream: Stream,
    runs: Sequence[Run],
    starts: dict[str, int],
    processes: GroupProcesses,
) -> None:
    """Put each run where it starts: at the first rows, or at its checkpoint."""
    new = [run.learner for run in runs if not starts[run.storage.url]]
    processes.initialise(stream, new)
    for run in runs:
        step = starts[run.storage.url]
        if step:
            run.end = checkpoint.stream_state(run.storage, step)
            checkpoint.restore(run.storage, run.learner, step)
            run.saved = run.learner.step


def _train(
    stream: Stream,
    runs: Sequence[Run],
    report: Report | None,
    sinks: Sinks | None,
    stop: Stop,
) -> None:
    """Take all steps, calibrate, and write the results."""
    try:
        for run in runs:
            if run.lead:
                # Until here a run that goes on has kept its records and
                # checkpoints; only where its store lies now was written.
                run.journal.begin()
            run.journal.sinks = []
            if sinks is not None:
                url = run.storage.url
                run.journal.sinks = sinks(url, run.spec, run.learner.step)
        with stop.held():
            take_steps(stream, runs, report, stop)
        results = []
        for run in runs:
            sae = run.learner.result()
            results.append(Result(run.learner, sae, run.end))
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
    processes: GroupProcesses,
) -> Run:
    """Return a run with a fresh learner.

    Raises:
        SaeError: The spec cannot be trained on these rows.
    """
    check_rows_fit(spec)
    check_l0(spec, stream.d)
    store = stream.store
    n_sites = len(stream.sites)
    torch_device = usable(device)
    if processes.world.size == 1:
        check_weights_fit(spec.sae.size(stream.d), stream.d, device)
    parallel = processes.parallel(spec, stream.d, n_sites, stream.d_target)
    sae = build(
        spec.sae,
        stream.d,
        spec.seed,
        n_sites,
        stream.d_target,
        latents_here=parallel.latents_here,
    )
    factors, out = scaling(stream, spec.stream, sae.b_dec)
    # what is reconstructed is what a figure such as FVU compares with
    predicted = stream.targets or stream.sites
    variances = [float(store.variance(site).sum()) for site in predicted]
    variance = torch.tensor(variances)
    norms = layer_norms(store, stream.sites, factors)
    steps = n_steps(spec, stream)
    if not start:  # what has begun goes on
        check_acts(spec, n_sites, steps)
    learner = Learner(
        spec, sae, factors, variance, steps, torch_device, norms, out, parallel
    )
    return Run(spec, storage, learner, Journal(storage, start), stream.sites)


def _save(stream: Stream, run: Run, result: Sae) -> None:
    """Write the run's result and its record, by which it has ended."""
    learner = run.learner
    store = stream.store
    tensors = snapshot.tensors_of(learner, result)
    if not run.lead:
        return
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
    # last: a run has ended when this is there
    run.storage.put("sae.json", record.to_json().encode())
