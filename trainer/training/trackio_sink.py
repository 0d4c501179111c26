"""Sends the records of a run to trackio, which keeps them on this machine."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from typing import Any

from actstore.errors import first_line
from schemas.records import StepRecord
from schemas.train import TrainSpec
from trainer.errors import TrainerError
from trainer.training.sink_values import (
    optional_module,
    run_identity,
    run_name,
    values,
)


class TrackioSink:
    """Logs to a run of a project of trackio.

    It writes a database in a folder of this machine ($TRACKIO_DIR), and sends nothing.
    """

    def __init__(self, url: str, spec: TrainSpec, project: str) -> None:
        """Begin, or go on with, a run.

        Args:
            url: The run's folder.
            spec: Its spec.
            project: The project of trackio.

        Raises:
            TrainerError: trackio does not take the project's name, or its folder.
        """
        module = trackio_module()
        # Runs are known by their names there, so that a name needs our identity. In a
        # context of its own a run does not end the one that was begun before it.
        name = f"{run_name(url, spec)} {run_identity(url, spec)[:8]}"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self._run = contextvars.Context().run(
                    module.init,
                    project=project,
                    name=name,
                    config=spec.model_dump(mode="json"),
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        except (OSError, ValueError) as error:
            raise TrainerError(
                f"--trackio {project}: trackio cannot begin a run: {first_line(error)}"
            ) from error

    def add(self, record: StepRecord) -> None:
        """Log a record."""
        self._run.log(values(record), step=record.step)

    def close(self) -> None:
        """Write what is still to be written."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def trackio_module() -> Any:
    """Return the package.

    Raises:
        TrainerError: It cannot be imported.
    """
    return optional_module("trackio", "trackio", "--trackio")
