"""Has a pass trained on a Ray cluster; this process waits, and keeps the lease.

Should this process end, Ray ends the worker that it began: so nobody trains the runs
whose lease is given up. The worker sees the same folders as this machine, or says so.
"""

from __future__ import annotations

from contextlib import closing

from actstore.engines.engine_option import Engine, EngineOptions
from actstore.machine.stop_signals import Stop
from schemas.service import PassSpec
from trainer.training.step_loop import Report


def train_on_ray(spec: PassSpec, engine: Engine, stop: Stop, report: Report) -> None:
    """Train a pass on one worker of a cluster, and wait for it.

    Call it inside `stop.released()`.

    Args:
        spec: The pass.
        engine: The cluster; without an address, one of this machine's own.
        stop: Once it has a signal, the worker saves and ends.
        report: Is given the progress.

    Raises:
        EngineError: The cluster cannot be reached, or loses workers again and again.
        TrainerError, StoreError: As `train_pass` does.
        Stopped: There was a signal; what was trained is saved.
    """
    import torch

    from actstore.engines.ray_engine import (
        RayWorkers,
        connected,
        room_for,
        threads_each,
    )
    from actstore.engines.worker_place import place_like_here
    from schemas.engines import PassSetup
    from trainer.training.pass_driver import WORK, PassDriver

    on_gpu = spec.device == "cuda"
    options = EngineOptions(engine, 1, {})
    threads = None if on_gpu else threads_each(options, torch.get_num_threads())
    cpus = threads or 1
    setup = PassSetup(place=place_like_here(spec.device, threads))
    with connected(options, cpus) as ray, stop.held():
        room = room_for(ray, options, cpus, int(on_gpu))
        with closing(RayWorkers(ray, room, WORK)) as workers:
            driver = PassDriver(
                workers=workers,
                setup=setup.to_json(),
                stop=stop,
                tell=print,
                report=report,
            )
            driver.meet(1)
            driver.train([spec])
