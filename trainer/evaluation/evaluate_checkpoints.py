"""Evaluates the SAEs that a run kept from its training, one after the other."""

from __future__ import annotations

import os

from actstore import arguments
from actstore.arguments import checked, optional
from actstore.format.storage import Storage
from schemas.records import CheckpointEval
from trainer.errors import RunError
from trainer.evaluation.calibrate import no_filter
from trainer.evaluation.evaluate import Progress, check_arguments, tick_of
from trainer.evaluation.metrics_of_rows import evaluate_rows, with_model
from trainer.runs import checkpoint_evals
from trainer.runs.kept_weights import kept_steps, load_kept
from trainer.runs.notes import Tell, as_warning
from trainer.runs.run_arguments import run_folder
from trainer.runs.run_store import store_of
from trainer.runs.trained_sae import load


@checked(
    run=run_folder,
    store=optional(arguments.folder),
    split=arguments.choice("held_out", "train"),
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
def evaluate_checkpoints(
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
) -> tuple[CheckpointEval, ...]:
    """Evaluate every SAE that a run kept from its training, and write `evals.jsonl`.

    These are its snapshots (`snapshots` of its spec, or `trainer train --snapshots N`)
    and the weights of the checkpoints that are there. Thresholds are those of training;
    only the SAE at its end, which `evaluate` measures, is calibrated.

    Args:
        run: The run's folder: a path or any fsspec URL.
        store: As in `evaluate`, like all that follow.
        split: "held_out" or "train".
        rows: Rows of each site at most; None for all.
        all_rows: Also take rows that the run's own filter left out of training.
        ce: Also run the language model.
        model: Where the language model is now. Implies `ce`.
        sequences: Held-out sequences for CE and KL; None for 64.
        trust_remote_code: Run code that comes with the language model.
        device: Where the SAEs and the language model run.
        tell: Is given what should be known though it is no error.
        progress: Is called with "rows" or "language model", how much is done, and how
            much there is, for each SAE anew.

    Returns:
        The evaluations, by step.

    Raises:
        RunError: There is no finished run, it kept nothing, or no store fits it.
        SpecError: An argument cannot be used.
        TrainerError: Arguments exclude each other.

    Examples:
        >>> import trainer
        >>> records = trainer.evaluate_checkpoints("runs/topk")
        >>> last = records[-1]
        >>> last.rows == trainer.load("runs/topk").record.rows
        True
        >>> 0 < last.evaluation.pooled.fvu < 1
        True
    """
    run = os.fspath(run)
    store = arguments.path_or_none(store)
    model = arguments.path_or_none(model)
    max_rows = None if rows is None else arguments.count(rows)
    with_ce = ce or model is not None
    check_arguments(split, sequences, with_ce, trust_remote_code)
    last = load(run)
    if all_rows and last.record.filter is None:
        raise no_filter([run])
    opened = store_of(run, last.record, store)
    if opened.note is not None:
        tell(opened.note)
    storage = Storage(run)
    steps = kept_steps(storage)
    if not steps:
        raise RunError(
            f"{run}: it kept no SAE from its training; train with --snapshots N, which"
            " keeps N of them"
        )
    subject = None
    if with_ce:
        from trainer.evaluation import cross_entropy_and_kl as effects

        subject = effects.subject_of(
            last, opened.store, model, device, trust_remote_code=trust_remote_code
        )
    records = []
    for step in steps:
        kept = load_kept(run, step, device)
        tick = tick_of("rows", progress)
        record, _ = evaluate_rows(
            kept.sae, opened.store, split, max_rows, tick, all_rows
        )
        if subject is not None:
            effect = effects.model_metrics(
                kept.sae,
                opened.store,
                model,
                effects.SEQUENCES if sequences is None else sequences,
                device,
                tick_of("language model", progress),
                subject,
                tell,
            )
            record = with_model(record, effect)
        records.append(CheckpointEval(step=step, rows=kept.rows, evaluation=record))
    checkpoint_evals.write(storage, records)
    return tuple(records)
