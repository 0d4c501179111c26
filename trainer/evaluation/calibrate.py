"""Calibrates a run: sets the thresholds of its SAE for a wanted L0."""

from __future__ import annotations

import os
from collections.abc import Sequence

from actstore import arguments
from actstore.arguments import checked, optional
from trainer.errors import RunError
from trainer.evaluation.move_thresholds import move_thresholds, write_thresholds
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import load


@checked(
    run=run_folder,
    l0=optional(arguments.positive),
    store=optional(arguments.folder),
    all_rows=arguments.flag,
    device=arguments.device,
    tell=arguments.callback,
)
def calibrate(
    run: str | os.PathLike[str],
    *,
    l0: float | None = None,
    store: str | os.PathLike[str] | None = None,
    all_rows: bool = False,
    device: str = "cpu",
    tell: Tell = as_warning,
) -> float:
    """Set the thresholds of a trained SAE so that held-out rows have a wanted mean L0.

    Training ends with this. It is for imported SAEs, another store or another L0. The
    weights in the run are replaced, and its evaluation is removed.

    Args:
        run: The run's folder: a path or any fsspec URL.
        l0: The wanted mean number of active latents; None for k or target_l0 of the
            run.
        store: The store to calibrate on; None for the one that it was trained from.
        all_rows: Also take rows that the run's own filter left out of training.
        device: Where the SAE runs.
        tell: Is given what should be known though it is no error; by default each such
            note is a TrainerWarning.

    Returns:
        The L0 that the thresholds are set for.

    Raises:
        RunError: There is no finished run, its SAE has no thresholds, or the L0 cannot
            be reached.
        SpecError: An argument cannot be used, such as an L0 that is not above 0.

    Examples:
        >>> import trainer
        >>> trainer.calibrate("runs/batch_topk", l0=6)
        6
        >>> round(trainer.evaluate("runs/batch_topk").pooled.l0)
        6
    """
    run = os.fspath(run)
    store = arguments.path_or_none(store)
    sae = load(run, device=device)
    if all_rows and sae.record.filter is None:
        raise no_filter([run])
    opened = store_of(run, sae.record, store)
    if opened.note is not None:
        tell(opened.note)
    # Raises before anything is written, where the L0 cannot be reached.
    reached = move_thresholds(sae, opened.store, l0, all_rows)
    write_thresholds(run, sae, reached)
    return reached


def filtered_runs(runs: Sequence[str]) -> set[str]:
    """Return those of the runs whose training left rows out, by a filter.

    Raises:
        RunError: There are none, so that `all_rows` would do nothing.
    """
    filtered = {run for run in runs if load(run).record.filter is not None}
    if not filtered:
        raise no_filter(runs)
    return filtered


def no_filter(runs: Sequence[str]) -> RunError:
    """Return the error of `all_rows` where all rows are taken anyway."""
    return RunError(
        f"--all-rows: no filter left rows out of the training of {', '.join(runs)};"
        " leave it out"
    )
