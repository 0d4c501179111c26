"""Sends the records of a run to TensorBoard, Weights & Biases, trackio and MLflow.

Their packages are optional, and are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actstore.errors import first_line
from schemas.records import StepRecord
from schemas.service import NO_SINKS, JournalSinks
from schemas.train import TrainSpec
from trainer.errors import TrainerError
from trainer.runs.journal import Sink, Sinks
from trainer.training.mlflow_sink import MlflowSink, mlflow_module
from trainer.training.sink_values import (
    optional_module,
    run_identity,
    run_name,
    values,
)
from trainer.training.trackio_sink import TrackioSink, trackio_module


def sinks_for(urls: Sequence[str], wanted: JournalSinks) -> Sinks | None:
    """Return what makes the sinks of a run; None where none is wanted.

    Args:
        urls: The folders of all runs.
        wanted: Where records go besides the journals.

    Raises:
        TrainerError: A package is missing, or a run's folder will not do; before
            anything is trained.
    """
    if wanted == NO_SINKS:
        return None
    _check(urls, wanted)

    def make(url: str, spec: TrainSpec, start: int) -> list[Sink]:
        sinks: list[Sink] = []
        if wanted.tensorboard:
            sinks.append(TensorBoardSink(url, start))
        if wanted.wandb is not None:
            sinks.append(WandbSink(url, spec, wanted.wandb))
        if wanted.trackio is not None:
            sinks.append(TrackioSink(url, spec, wanted.trackio))
        if wanted.mlflow is not None:
            sinks.append(MlflowSink(url, spec, wanted.mlflow))
        return sinks

    return make


def _check(urls: Sequence[str], wanted: JournalSinks) -> None:
    """Raise TrainerError where a sink could not be made."""
    if wanted.tensorboard:
        _tensorboard_module()
        for url in urls:
            _local_folder(url)
    if wanted.wandb is not None:
        _check_wandb()
    if wanted.trackio is not None:
        trackio_module()
    if wanted.mlflow is not None:
        mlflow_module()


class TensorBoardSink:
    """Writes event files to RUN/tensorboard."""

    def __init__(self, url: str, start: int = 0) -> None:
        """Begin after a step.

        Args:
            url: The run's folder.
            start: The step that the run goes on from. What an earlier process wrote
                about later steps is taken back.
        """
        folder = str(_local_folder(url) / "tensorboard")
        module = _tensorboard_module()
        self._writer = module.SummaryWriter(folder, purge_step=start + 1)

    def add(self, record: StepRecord) -> None:
        """Write a record."""
        for name, value in values(record).items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        """Write what is still to be written."""
        self._writer.close()


class WandbSink:
    """Logs to a run of a project.

    The run's identity follows from its folder and its spec, so that a resumed run of
    ours goes on with the same one there.
    """

    def __init__(self, url: str, spec: TrainSpec, project: str) -> None:
        """Begin, or go on with, a run.

        Args:
            url: The run's folder.
            spec: Its spec.
            project: The project of Weights & Biases.

        Raises:
            TrainerError: It cannot be begun: the network, a key that is not valid.
        """
        module = _wandb_module()
        try:
            self._run = module.init(
                project=project,
                name=run_name(url, spec),
                id=run_identity(url, spec),
                config=spec.model_dump(mode="json"),
                resume="allow",
                reinit="create_new",
            )
        except module.errors.Error as error:
            raise TrainerError(
                f"--wandb {project}: Weights & Biases cannot begin a run:"
                f" {first_line(error)}; resume once it can, or without it"
            ) from error

    def add(self, record: StepRecord) -> None:
        """Log a record."""
        self._run.log(values(record), step=record.step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _tensorboard_module() -> Any:
    return optional_module("torch.utils.tensorboard", "tensorboard", "--tensorboard")


def _wandb_module() -> Any:
    return optional_module("wandb", "wandb", "--wandb")


def _check_wandb() -> None:
    """Raise TrainerError where Weights & Biases would refuse to begin a run."""
    module = _wandb_module()
    # Offline, or disabled, it asks nobody.
    if module.setup().settings.mode == "online" and not module.login(prompt=False):
        raise TrainerError(
            "--wandb: Weights & Biases knows no API key here; set WANDB_API_KEY or run"
            " `wandb login`, or set WANDB_MODE=offline to keep the records here"
        )


def _local_folder(url: str) -> Path:
    protocol, mark, rest = url.partition("://")
    if not mark:
        return Path(url)
    if protocol not in {"file", "local"}:
        raise TrainerError(
            "--tensorboard writes into the run's folder, which must be local, got"
            f" {url}"
        )
    return Path(rest)
