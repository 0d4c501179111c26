"""What passes between a command and the jobs of Slurm's that it submitted."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Schema
from schemas.harvest import HarvestSpec


class JobWork(Schema):
    """The work of one job."""

    name: str = Field(description="what messages call it, such as `worker 3/8`")
    text: str = Field(description="what the job's function is given: JSON")


class SubmittedJobs(Schema):
    """The jobs that a command submits; written before the first one is."""

    what: str = Field(description="what they do together, whatever the jobs are")
    job_name: str = Field(description="the name that Slurm knows all of them by")
    function: str = Field(description="what each calls, as `module:function`")
    works: tuple[JobWork, ...] = Field(
        min_length=1, description="their work, by their numbers in the array"
    )


class JobOutcome(Schema):
    """How a job ended."""

    job: str = Field(description="its id")
    error: str | None = Field(
        default=None, description="why it failed, for the user; None: it is done"
    )


class HarvestJob(Schema):
    """The work of a job that harvests."""

    spec: HarvestSpec = Field(description="what all of them harvest")
    out: str = Field(description="URL of the store")
    worker: str | None = Field(description="its share, such as `3/8`; null: all of it")
    device: str = Field(description="where the model runs")
