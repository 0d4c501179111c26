"""Sends the records of a run to MLflow: to a server, or to a database here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from actstore.errors import first_line
from schemas.records import StepRecord
from schemas.train import TrainSpec
from trainer.errors import TrainerError
from trainer.runs.notes import as_warning
from trainer.training.sink_values import (
    optional_module,
    run_identity,
    run_name,
    values,
)


class MlflowSink:
    """Logs to a run of an experiment of MLflow.

    The run has our identity as a tag, by which a resumed run of ours finds it again.
    """

    def __init__(self, url: str, spec: TrainSpec, experiment: str) -> None:
        """Begin, or go on with, a run.

        Args:
            url: The run's folder.
            spec: Its spec.
            experiment: The experiment of MLflow.

        Raises:
            TrainerError: It cannot be begun: there is no server, or no database.
        """
        self._url = url
        self._module = mlflow_module()
        try:
            self._client = self._module.MlflowClient()
            self._run_id: str | None = self._begin(url, spec, experiment)
        except self._module.exceptions.MlflowException as error:
            raise TrainerError(
                f"--mlflow {experiment}: MLflow cannot begin a run:"
                f" {first_line(error)}; set MLFLOW_TRACKING_URI to your server's"
                " address, or to sqlite:///FILE"
            ) from error

    def add(self, record: StepRecord) -> None:
        """Log a record. After the first that fails, training goes on without."""
        if self._run_id is None:
            return
        now = int(time.time() * 1000)  # milliseconds, as MLflow has it
        metrics = [
            self._module.entities.Metric(name, value, now, record.step)
            for name, value in values(record).items()
        ]
        self._tried(self._client.log_batch, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        if self._run_id is not None:
            self._tried(self._client.set_terminated)

    def _begin(self, url: str, spec: TrainSpec, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            place = self._client.create_experiment(experiment)
        else:
            place = found.experiment_id
        identity = run_identity(url, spec)
        runs = self._client.search_runs([place], f"tags.actstore_run = '{identity}'")
        if runs:
            run_id: str = runs[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {"actstore_run": identity, "actstore_folder": url}
        run = self._client.create_run(place, tags=tags, run_name=run_name(url, spec))
        for name, value in _flat(spec.model_dump(mode="json")).items():
            self._client.log_param(run.info.run_id, name, value)
        return str(run.info.run_id)

    def _tried(self, call: Callable[..., object], **more: object) -> None:
        try:
            call(self._run_id, **more)
        except self._module.exceptions.MlflowException as error:
            self._run_id = None
            as_warning(
                f"{self._url}: MLflow takes no more records ({first_line(error)}); the"
                " journal in the run's folder has all of them"
            )


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested values by their dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{above}{name}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def mlflow_module() -> Any:
    """Return the package, which tells nobody how it is used.

    Raises:
        TrainerError: It cannot be imported.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return optional_module("mlflow", "mlflow", "--mlflow")
