"""Records of a run for TensorBoard and Weights & Biases, which are optional and
imported when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from schemas.records import StepRecord
from schemas.train import TrainSpec
from trainer.errors import TrainerError
from trainer.runs.journal import Sink, Sinks


def sinks_for(
    urls: Sequence[str], tensorboard: bool, wandb: str | None
) -> Sinks | None:
    """What makes a run's sinks; None where none is wanted. wandb: a project.

    Raises TrainerError, before anything is trained, where a package is missing or a
    run's folder will not do.
    """
    if not tensorboard and wandb is None:
        return None
    if tensorboard:
        _module("torch.utils.tensorboard", "tensorboard", "--tensorboard")
        for url in urls:
            _local(url)
    if wandb is not None:
        _module("wandb", "wandb", "--wandb")

    def make(url: str, spec: TrainSpec, start: int) -> list[Sink]:
        made: list[Sink] = []
        if tensorboard:
            made.append(TensorBoardSink(url, start))
        if wandb is not None:
            made.append(WandbSink(url, spec, wandb))
        return made

    return make


def values(record: StepRecord) -> dict[str, float]:
    """A record's figures by name; a site's FVU as `fvu/SITE`, terms of the loss as
    `loss/NAME`.
    """
    flat = record.model_dump(exclude={"step", "layers", "parts"})
    layers = {
        f"fvu/{site}": value
        for site, value in record.layers.items()
        if value is not None
    }
    return {
        **flat,
        **layers,
        **{f"loss/{name}": value for name, value in record.parts.items()},
    }


class TensorBoardSink:
    """Event files in RUN/tensorboard. start: a resumed run takes back what was written
    behind that step.
    """

    def __init__(self, url: str, start: int = 0) -> None:
        module = _module("torch.utils.tensorboard", "tensorboard", "--tensorboard")
        self._writer = module.SummaryWriter(
            str(_local(url) / "tensorboard"), purge_step=start + 1
        )

    def add(self, record: StepRecord) -> None:
        for name, value in values(record).items():
            self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A run of a project; resuming one of ours goes on with the same one there."""

    def __init__(self, url: str, spec: TrainSpec, project: str) -> None:
        module = _module("wandb", "wandb", "--wandb")
        self._run = module.init(
            project=project,
            name=spec.name or url.rstrip("/").rpartition("/")[2],
            id=blake3(f"{url} {spec.to_json()}".encode()).hexdigest(16),
            config=spec.model_dump(mode="json"),
            resume="allow",
            reinit="create_new",
        )

    def add(self, record: StepRecord) -> None:
        self._run.log(values(record), step=record.step)

    def close(self) -> None:
        self._run.finish()


def _module(name: str, extra: str, option: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrainerError(
            f"{option} wants {extra}, which cannot be imported ({error}); install it"
            f" with `pip install 'actstore[{extra}]'`, or leave the option out"
        ) from error


def _local(url: str) -> Path:
    protocol, found, rest = url.partition("://")
    if found and protocol not in {"file", "local"}:
        raise TrainerError(
            "--tensorboard writes into the run's folder, which must be local, got"
            f" {url}"
        )
    return Path(rest if found else url)
