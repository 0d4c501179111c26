"""What a job of Slurm's does for a harvest; jobs find it by its name."""

from __future__ import annotations

import json
from collections.abc import Callable

from actstore.errors import ExistsError, OthersUnfinishedError
from actstore.format import object_keys
from actstore.format.storage import Storage
from actstore.harvesting.harvest import harvest
from actstore.harvesting.progress import Progress
from actstore.machine.stop_signals import Stop
from schemas.slurm import HarvestJob


def harvest_share(text: str, _stop: Stop, tell: Callable[[str], None]) -> None:
    """Harvest one worker's share; a signal ends that where it is (Stopped).

    Args:
        text: A HarvestJob.
        tell: Is given the progress, as JSON.
    """
    job = HarvestJob.model_validate_json(text)
    storage = Storage(job.out)
    # A job that was ended after the store was finished, and queued again.
    if storage.exists(object_keys.MANIFEST):
        return

    def report(progress: Progress) -> None:
        tell(json.dumps(progress))

    try:
        harvest(
            job.spec, job.out, device=job.device, worker=job.worker, progress=report
        )
    except OthersUnfinishedError:
        return
    except ExistsError:
        # Another job has finished it while this one loaded its model.
        if not storage.exists(object_keys.MANIFEST):
            raise
