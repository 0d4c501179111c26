"""What the process that a user started and the workers of an engine say to each other.

The *driver* is the process that the user started. Everything between it and a worker is
JSON of these records: a *setup* once, then *questions* of the driver's and *answers*.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.harvest import HarvestSpec
from schemas.service import PassSpec


class WorkerPlace(Schema):
    """Where and how a worker works, the same for a harvest and a sweep."""

    version: str = Field(description="of actstore, as the driver has it")
    folder: str = Field(description="the driver's, which relative paths start from")
    variables: dict[str, str] = Field(
        description="values that hold while the command runs, such as a catalog's URL"
    )
    device: Literal["cpu", "cuda"] = Field(description="where it computes")
    threads: int | None = Field(description="of torch's; null: as the engine says")


class WorkError(Schema):
    """Why a worker could not do its work."""

    kind: str = Field(description="the class of the error")
    module: str = Field(description="the module that has it")
    text: str = Field(description="its message")
    is_users: bool = Field(description="whether doing it again would be no use")


class HarvestSetup(Schema):
    """What a worker of a harvest is told once."""

    place: WorkerPlace = Field(description="where and how it works")
    spec: HarvestSpec = Field(description="what is harvested")
    out: str = Field(description="where the store goes")
    options: dict[str, Any] = Field(description="for its file system")


class HarvestQuestion(Schema):
    """What the driver of a harvest asks of a worker, and tells it."""

    may_write: Literal["", "begin", "join"] = Field(
        default="",
        description="whether it may begin the store, or join it where it was begun",
    )
    number: int = Field(
        default=0,
        ge=0,
        description="which worker it is; the first reads the corpus for all",
    )
    units: list[int] = Field(default=[], description="more units to harvest")


class DoneUnit(Schema):
    """A unit that a worker has committed, or found committed."""

    unit: int = Field(description="its number")
    n_tokens: int = Field(description="its tokens")
    bytes: int = Field(description="bytes that the worker wrote of it")


class HarvestAnswer(Schema):
    """What a worker of a harvest says: all that is new since its last answer."""

    stage: Literal["loading", "loaded", "writing", "failed"] = Field(
        description="loading the model; waiting until it may write; harvesting"
    )
    node: str = Field(description="the machine that it is on")
    tokenizer_keys: list[str] = Field(
        default=[], description="files of the tokenizer that it wrote"
    )
    done: list[DoneUnit] = Field(default=[], description="units that are committed")
    beyond: list[int] = Field(default=[], description="units after the corpus' end")
    tokens: int = Field(default=0, description="tokens of units not yet committed")
    in_flight: int = Field(default=0, description="units captured, not committed")
    notes: list[str] = Field(default=[], description="warnings for the user")
    error: WorkError | None = Field(default=None, description="why it failed")


class PassSetup(Schema):
    """What a worker of a sweep is told once."""

    place: WorkerPlace = Field(description="where and how it works")


class PassQuestion(Schema):
    """What the driver of a sweep asks of a worker, and tells it."""

    begin: PassSpec | None = Field(default=None, description="the pass to train next")
    stop: int | None = Field(
        default=None, description="a signal's number: save, and end the pass"
    )


class RunFigures(Schema):
    """Figures of a run over the last steps that were logged."""

    loss: float = Field(description="the whole loss")
    l0: float = Field(description="latents that fired in a row")
    fvu: float = Field(description="fraction of variance unexplained")
    dead: int = Field(description="latents that are dead")


class PassProgress(Schema):
    """Where a pass is."""

    step: int = Field(description="steps so far")
    steps: int = Field(description="steps in all")
    rows: int = Field(description="rows trained on by this worker")
    rows_per_s: float = Field(description="rows per second, of late")
    seconds: float = Field(description="since its first step")
    stall_s: float = Field(description="of these, waiting for rows")
    last: dict[str, RunFigures] = Field(description="of each run, by its URL")


class PassAnswer(Schema):
    """What a worker of a sweep says."""

    stage: Literal["idle", "training", "ended", "stopped", "failed"] = Field(
        description="what it does; the last three are said once of each pass"
    )
    node: str = Field(description="the machine that it is on")
    memory: int = Field(description="bytes that training may take of its device")
    progress: PassProgress | None = Field(default=None, description="of its pass")
    saved: str = Field(default="", description="what was saved when it was stopped")
    notes: list[str] = Field(default=[], description="warnings for the user")
    error: WorkError | None = Field(default=None, description="why the pass failed")
