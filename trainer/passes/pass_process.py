"""The process that trains one pass: `python -m trainer.passes.pass_process`.

It takes the lease that it was started for, trains the runs from where they are, says
how each fared, and ends. It needs the queue and the runs' folders, and no service: that
may be gone, and come back.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from actstore.engines.engine_option import parse_engine
from actstore.errors import (
    ActstoreError,
    ClusterLostError,
    FullError,
    StorageError,
)
from actstore.machine.stop_signals import Stop, Stopped, signals
from actstore.machine.torch_threads import wait_briefly
from schemas.service import PassSpec
from trainer.errors import RunLockedError, ServiceError
from trainer.passes.heartbeats import LOST, Heartbeats
from trainer.passes.pass_log import log_path
from trainer.passes.places_file import check_store_again
from trainer.passes.process_identity import process_start
from trainer.queue.database import NAME
from trainer.queue.ended_runs import ended_runs
from trainer.queue.queue import Queue
from trainer.queue.queue_records import Outcome, QueuedRun

# A storage or cluster that cannot be reached would fail the next run too: what waits
# longest is tried again soonest.
REACH_WAIT_S = 30.0
END_TRIES = 10


def main() -> int:
    """Train the pass of a lease; return the exit code."""
    asked = _arguments()
    # held: a signal ends the training, and nothing else
    with signals() as stop, stop.held(), Queue(asked.state / NAME) as queue:
        if not queue.take(asked.lease, os.getpid(), process_start(os.getpid())):
            return LOST
        runs = _runs(queue, asked.lease)
        log = log_path(asked.state, asked.lease)
        beats = Heartbeats(queue, asked.lease, runs, log, stop)
        outcome = _trained(runs, asked, queue, stop, beats)
        outcomes = _outcomes(runs, outcome)
        beats.close()
        _end(queue, asked.lease, outcomes)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.passes.pass_process")
    parser.add_argument("state", type=Path, help="the service's folder of state")
    parser.add_argument("lease", help="the lease that it was started for")
    parser.add_argument("--device", default="cpu", help="where it trains")
    parser.add_argument("--engine", help="what places the training elsewhere")
    return parser.parse_args()


def _runs(queue: Queue, lease_id: str) -> list[QueuedRun]:
    leases = {lease.id: lease for lease in queue.leases()}
    if lease_id not in leases:
        sys.exit(LOST)
    return [queue.run(run_id) for run_id in leases[lease_id].runs]


def _trained(
    runs: list[QueuedRun],
    asked: argparse.Namespace,
    queue: Queue,
    stop: Stop,
    beats: Heartbeats,
) -> Outcome:
    """Train; return what is to be said of the runs that have not finished."""
    spec = PassSpec(
        runs={run.url: run.spec for run in runs},
        store=runs[0].store_url,
        device=asked.device,
    )
    try:
        check_store_again(asked.state, spec.store)
        with stop.released():
            _train(spec, asked, queue, stop, beats)
    except Stopped:
        return Outcome("stopped")
    except FullError as error:
        return Outcome("failed", str(error))
    except (StorageError, ClusterLostError, RunLockedError) as error:
        return _lost(error, stop)
    except ActstoreError as error:
        return Outcome("failed", str(error))
    except Exception as error:  # noqa: BLE001 (told to the user; the log has all of it)
        traceback.print_exc()
        return Outcome("failed", _first_line(error))
    return Outcome("lost", "it was trained, but its folder has no sae.json")


def _train(
    spec: PassSpec,
    asked: argparse.Namespace,
    queue: Queue,
    stop: Stop,
    beats: Heartbeats,
) -> None:
    """Train a pass, here or where an engine places it."""
    wait_briefly()
    if asked.engine is None:
        from trainer.training.one_pass import train_pass

        train_pass(spec, stop=stop, report=beats.report)
        return
    engine = parse_engine(asked.engine)
    if engine.kind == "slurm":
        from trainer.passes.pass_on_slurm import train_on_slurm

        def held() -> set[str]:
            return {lease.id for lease in queue.leases()}

        train_on_slurm(spec, asked.state, asked.lease, held, beats.report)
        return
    from trainer.passes.pass_on_ray import train_on_ray

    train_on_ray(spec, engine, stop, beats.report)


def _lost(error: ActstoreError, stop: Stop) -> Outcome:
    """Wait a while, after what may pass by itself; return that it is tried again."""
    try:
        with stop.released():
            time.sleep(REACH_WAIT_S)
    except Stopped:
        return Outcome("stopped")
    return Outcome("lost", str(error))


def _first_line(error: Exception) -> str:
    first, *_ = [*str(error).strip().splitlines(), ""]
    return f"{type(error).__name__}: {first}; the service's log has more"


def _outcomes(runs: list[QueuedRun], outcome: Outcome) -> dict[str, Outcome]:
    """Return how each run fared: what its folder says comes first.

    An error that begins with a run's folder is of that run; the others go on together.
    Where it is not known whose it is, each is tried alone.
    """
    finished = ended_runs(runs)
    left = [run for run in runs if run.id not in finished]
    found = {run.id: outcome for run in left}
    if outcome.kind == "failed" and len(left) > 1:
        others = Outcome("stopped", "another run of its pass failed")
        guilty = [run.id for run in left if _begins_with(outcome.text, run.url)]
        if not guilty:
            told = f"its pass failed, and it is tried alone: {outcome.text}"
            others = Outcome("apart", told)
        found = {run.id: outcome if run.id in guilty else others for run in left}
    return {**found, **finished}


def _begins_with(text: str, url: str) -> bool:
    return text.startswith((f"{url}:", f"{url}/"))


def _end(queue: Queue, lease_id: str, outcomes: dict[str, Outcome]) -> None:
    """Say how the runs fared; without that, the service finds out by itself."""
    for _ in range(END_TRIES):
        try:
            queue.end(lease_id, outcomes)
        except ServiceError as error:
            print(error, file=sys.stderr)
            time.sleep(1)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
