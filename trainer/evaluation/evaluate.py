"""Evaluates a run: its metrics on rows, and its effect on the language model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal

from actstore import arguments
from actstore.arguments import checked, optional
from schemas.records import EvalRecord
from trainer.errors import TrainerError
from trainer.evaluation import metrics_of_rows
from trainer.evaluation.calibrate import no_filter
from trainer.evaluation.move_thresholds import asked_l0, off_target
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import load

SPLITS = ("held_out", "train")

# Is told what is being measured, how much of it is done, and how much there is.
Phase = Literal["rows", "language model"]
Progress = Callable[[Phase, int, int], None]


@checked(
    run=run_folder,
    store=optional(arguments.folder),
    split=arguments.choice(*SPLITS),
    rows=optional(arguments.count),
    all_rows=arguments.flag,
    ce=arguments.flag,
    model=optional(arguments.folder),
    sequences=optional(arguments.count),
    trust_remote_code=arguments.flag,
    device=arguments.device,
    tell=arguments.callback,
    progress=optional(arguments.callback),
)
def evaluate(
    run: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    split: str = "held_out",
    rows: int | str | None = None,
    all_rows: bool = False,
    ce: bool = False,
    model: str | os.PathLike[str] | None = None,
    sequences: int | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
    tell: Tell = as_warning,
    progress: Progress | None = None,
) -> EvalRecord:
    """Evaluate a trained SAE, and write its metrics to `eval.json` of its run.

    Args:
        run: The run's folder: a path or any fsspec URL.
        store: The store to evaluate on; None for the one that it was trained from.
        split: "held_out" or "train".
        rows: Take at most so many rows of each site: 50_000 or "50k"; None for all.
        all_rows: Also take rows that the run's own filter left out of training.
        ce: Also run the language model: CE and KL with each site replaced.
        model: Where the language model is now; None for where the harvest found it.
            Implies `ce`.
        sequences: Held-out sequences for CE and KL; None for 64.
        trust_remote_code: Run code that comes with the language model.
        device: Where the SAE and the language model run.
        tell: Is given what should be known though it is no error; by default each such
            note is a TrainerWarning.
        progress: Is called with "rows" or "language model", how much is done, and how
            much there is.

    Returns:
        The metrics of each layer and pooled (docs/metrics.md).

    Raises:
        RunError: There is no finished run, or no store that fits it.
        SpecError: An argument cannot be used.
        TrainerError: Arguments exclude each other.

    Examples:
        >>> import trainer
        >>> record = trainer.evaluate("runs/topk")
        >>> record.split, len(record.layers)
        ('held_out', 2)
        >>> 0 < record.pooled.fvu < 1
        True
        >>> record.pooled.l0 <= 8  # the k of this SAE
        True
    """
    run = os.fspath(run)
    store = arguments.path_or_none(store)
    model = arguments.path_or_none(model)
    max_rows = None if rows is None else arguments.count(rows)
    with_model = ce or model is not None
    check_arguments(split, sequences, with_model, trust_remote_code)
    sae = load(run, device=device)
    if all_rows and sae.record.filter is None:
        raise no_filter([run])
    opened = store_of(run, sae.record, store)
    if opened.note is not None:
        tell(opened.note)
    subject = None
    if with_model:
        from trainer.evaluation import cross_entropy_and_kl

        # Before any row is evaluated, so that a model that will not do is told at once.
        subject = cross_entropy_and_kl.subject_of(
            sae, opened.store, model, device, trust_remote_code=trust_remote_code
        )
    record, firings = metrics_of_rows.evaluate_rows(
        sae, opened.store, split, max_rows, tick_of("rows", progress), all_rows
    )
    if subject is not None:
        from trainer.evaluation import cross_entropy_and_kl

        effect = cross_entropy_and_kl.model_metrics(
            sae,
            opened.store,
            model,
            cross_entropy_and_kl.SEQUENCES if sequences is None else sequences,
            device,
            tick_of("language model", progress),
            subject,
            tell,
        )
        record = metrics_of_rows.with_model(record, effect)
    metrics_of_rows.write_evaluation(run, record, firings)
    for note in _notes(record, max_rows, off_target(record, asked_l0(sae))):
        tell(f"{run}: {note}")
    return record


def check_arguments(
    split: str, sequences: int | None, with_model: bool, trust_remote_code: bool
) -> None:
    """Check what does not depend on the run.

    Raises:
        TrainerError: The split is not known, or an argument would do nothing.
    """
    if split not in SPLITS:
        raise TrainerError(f"--split {split}: wanted {' or '.join(SPLITS)}")
    if trust_remote_code and not with_model:
        raise TrainerError(
            "--trust-remote-code: no model is run; leave it out, or add --ce"
        )
    if sequences is not None and not with_model:
        raise TrainerError("--sequences is of --ce; give that too, or leave it out")


def tick_of(phase: Phase, progress: Progress | None) -> metrics_of_rows.Tick | None:
    """Return what tells a progress callback how much of a phase is done."""
    if progress is None:
        return None
    return lambda done, total: progress(phase, done, total)


def _notes(record: EvalRecord, max_rows: int | None, off: str | None) -> Iterator[str]:
    """Yield what is to be said of an evaluation beside its figures.

    off: how its L0 differs from the one that was asked for.
    """
    rows_of_a_site = min(layer.rows for layer in record.layers)
    if max_rows is not None and rows_of_a_site < max_rows:
        yield (
            f"there are {rows_of_a_site:,} such rows of each site, {max_rows:,} were"
            " asked"
        )
    if record.model and record.filter is not None:
        yield (
            "CE and KL are of all ordinary tokens, also of those its filter leaves out"
        )
    if off is not None:
        yield off
