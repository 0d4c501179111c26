"""Calibrates a run: sets the thresholds of its SAE for a wanted L0."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import RunError, TrainerError
from trainer.evaluation.move_thresholds import move_thresholds, write_thresholds
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import load


def calibrate(
    run: str,
    *,
    l0: float | None = None,
    store: str | None = None,
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
        TrainerError: The L0 is not above 0.

    Examples:
        >>> import trainer
        >>> trainer.calibrate("runs/batch_topk", l0=6)
        6
        >>> round(trainer.evaluate("runs/batch_topk").pooled.l0)
        6
    """
    check_l0(l0)
    sae = load(run, device=device)
    opened = store_of(run, sae.record, store)
    if opened.note is not None:
        tell(opened.note)
    # Raises before anything is written, where the L0 cannot be reached.
    reached = move_thresholds(sae, opened.store, l0, all_rows)
    write_thresholds(run, sae, reached)
    return reached


def check_l0(l0: float | None) -> None:
    """Check a wanted L0.

    Raises:
        TrainerError: It is not above 0.
    """
    if l0 is not None and not l0 > 0:
        raise TrainerError(f"--l0 {l0:g}: wanted a number above 0")


def check_filtered(runs: Sequence[str], all_rows: bool) -> None:
    """Check that `all_rows` changes something for one of the runs.

    Raises:
        RunError: None of the runs was trained with a filter.
    """
    if all_rows and all(load(run).record.filter is None for run in runs):
        raise RunError(
            f"--all-rows: no filter left rows out of the training of {', '.join(runs)};"
            " leave it out"
        )
