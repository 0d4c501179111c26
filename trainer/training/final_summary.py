"""Says at the end of training how good the SAEs are, and what may come next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from actstore.errors import ActstoreError
from actstore.figures.layer_order import short_site
from actstore.format.storage import Storage
from trainer.runs import journal
from trainer.runs.notes import on_console
from trainer.runs.run_files import read_json
from trainer.training.progress_display import duration

if TYPE_CHECKING:
    from schemas.records import EvalRecord
    from trainer.runs.trained_sae import TrainedSae
    from trainer.training.step_loop import Progress

# Rows of all sites that a summary is from.
MOST_ROWS = 1 << 15
LEAST_ROWS = 1 << 11
# A summary takes at most a 50th of the number of rows trained on, so that it takes
# little time.
SHARE = 50
FEW = 1000  # rows below which the figures are said to mean little
# A summary warns where more than MANY of the latents never fired, if each could have
# fired ENOUGH times.
MANY = 0.1
ENOUGH = 50.0
NAMED = 3  # more runs than these are named together in commands


class Ended(NamedTuple):
    """A run that has ended.

    Attributes:
        url: Its folder.
        n_latents: Size of its dictionary.
        record: Its evaluation, or None where it was not evaluated.
        never: For each layer, how many latents fired on none of its rows.
        note: Why it was not evaluated, or what else is to be known.
        dead: Latents that were dead at the last step; None where that is not known.
        last: Where training was at the end; None where the run had ended before.
        seconds: How long its group took.
    """

    url: str
    n_latents: int
    record: EvalRecord | None
    never: list[int]
    note: str
    dead: int | None
    last: Progress | None
    seconds: float


def ended(
    url: str,
    store_url: str,
    device: str,
    last: Progress | None,
    seconds: float,
    evaluate: bool,
) -> Ended:
    """Look at a run that has ended: its SAE as a user gets it, on a few rows.

    A store or a device that fails now does not fail the run, which is told in the note.

    Args:
        url: The run's folder.
        store_url: Its store.
        device: Where the SAE is evaluated.
        last: Where training was at the end; None where the run had ended before.
        seconds: How long its group took.
        evaluate: Whether to evaluate it; no single device may hold a split dictionary.
    """
    from trainer.runs.trained_sae import load

    records = journal.read(Storage(url))
    sae = load(url)
    run = Ended(
        url=url,
        n_latents=sae.n_latents,
        record=None,
        never=[],
        note="",
        dead=records[-1].dead if records else None,
        last=last,
        seconds=seconds,
    )
    if not evaluate:
        return run._replace(
            note="not evaluated here, since its dictionary is split over devices"
        )
    try:
        return _evaluated(run, sae.to(device), store_url)
    except (ActstoreError, OSError, RuntimeError, MemoryError) as error:
        # no room on a device is a RuntimeError
        why = str(error) or type(error).__name__
        return run._replace(note=f"not evaluated: {why}")


def _evaluated(run: Ended, sae: TrainedSae, store_url: str) -> Ended:
    from actstore.store.open_store import open as open_store
    from trainer.evaluation.metrics_of_rows import evaluate_rows, holds_out
    from trainer.evaluation.move_thresholds import asked_l0, off_target

    store = open_store(store_url)
    split = "held_out" if holds_out(sae, store) else "train"
    rows_of_all_sites = max(LEAST_ROWS, min(MOST_ROWS, sae.record.rows // SHARE))
    rows = max(1, rows_of_all_sites // len(sae.sites))
    record, firings = evaluate_rows(sae, store, split, rows)
    notes = []
    if split != "held_out":
        notes.append(
            "the store holds no rows out that it could see: these are rows of training"
        )
    if record.rows < FEW:
        notes.append(f"figures of {record.rows:,} rows mean little")
    others = (
        _poor_figures(run, record),
        off_target(record, asked_l0(sae)),
        _centred_by_itself(run.url, sae),
    )
    notes += [note for note in others if note is not None]
    never = (firings == 0).sum(dim=1).tolist()
    return run._replace(record=record, never=never, note="; ".join(notes))


def _poor_figures(run: Ended, record: EvalRecord) -> str | None:
    """Return what a user may overlook in a table of figures."""
    no_better = [layer.site for layer in record.layers if layer.fvu >= 1]
    if no_better:
        return (
            f"an FVU of 1 or more, no better than the mean, at {', '.join(no_better)};"
            " where a site's rows are much shorter than others', --rescale unit makes"
            " them count as much"
        )
    firings_of_a_latent = record.rows * record.pooled.l0 / run.n_latents
    if firings_of_a_latent > ENOUGH and record.dead > MANY * run.n_latents:
        return (
            f"{record.dead:,} of {run.n_latents:,} latents never fired here; more"
            " --rows or fewer latents may help"
        )
    return None


def _centred_by_itself(url: str, sae: TrainedSae) -> str | None:
    """Return a note where rows were centred though the spec does not say so."""
    from schemas.train import TrainSpec

    asked = read_json(Storage(url), "spec.json", TrainSpec).stream.center
    if sae.mean is None or asked is not None:
        return None
    return (
        "the sites' means lie far apart and were taken off their rows; --no-center"
        " leaves them"
    )


def show(console: Any, runs: Sequence[Ended], sweep_folder: str | None = None) -> None:
    """Print what is to be said of runs that have ended.

    Args:
        console: A rich Console.
        runs: The runs.
        sweep_folder: The folder of a sweep's runs; None where there is one run.
    """
    if not runs:
        return
    if sweep_folder is not None:
        console.print(_table_by_run(runs))
    else:
        for run in runs:
            if run.record is not None:
                console.print(_table_by_layer(run, run.record))
    for run in runs:
        if run.note:
            on_console(console, f"{run.url}: {run.note}")
    splits = {run.record.split for run in runs if run.record is not None}
    # Rows that are not held out have to be asked for.
    options = "" if splits <= {"held_out"} else " --split train"
    urls = [run.url for run in runs]
    for line in [*_what_it_took(runs), *_next_commands(urls, sweep_folder, options)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table_by_layer(run: Ended, record: EvalRecord) -> Any:
    from trainer.runs.run_data import rows_phrase, shown_figure

    table = _table(rows_phrase(record), "layer", "FVU", "L0", "never fired")
    for layer, never in zip(record.layers, run.never, strict=True):
        table.add_row(
            short_site(layer.site),
            shown_figure(layer.fvu),
            shown_figure(layer.l0),
            f"{never:,}",
        )
    table.add_row(
        "all",
        shown_figure(record.pooled.fvu),
        shown_figure(record.pooled.l0),
        f"{record.dead:,}",
    )
    return table


def _table_by_run(runs: Sequence[Ended]) -> Any:
    from trainer.runs.run_data import rows_phrase, shown_figure

    title = f"{len(runs)} SAEs"
    phrases = {rows_phrase(run.record) for run in runs if run.record is not None}
    if len(phrases) == 1:
        title += f", of each {phrases.pop()}"
    elif phrases:
        title += ", each on rows of its own"
    table = _table(title, "run", "FVU", "L0", "never fired", "dead", "latents")
    for run in runs:
        name = run.url.rstrip("/").rpartition("/")[2]
        evaluated = ["–", "–", "–"]
        if run.record is not None:
            evaluated = [
                shown_figure(run.record.pooled.fvu),
                shown_figure(run.record.pooled.l0),
                f"{run.record.dead:,}",
            ]
        dead = "–" if run.dead is None else f"{run.dead:,}"
        table.add_row(name, *evaluated, dead, f"{run.n_latents:,}")
    return table


def _table(title: str, first: str, *figures: str) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(first, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _what_it_took(runs: Sequence[Ended]) -> list[str]:
    """Return a line for a run, or one for each pass of a sweep."""
    is_single = len(runs) == 1
    lines = []
    if is_single and runs[0].dead is not None:
        lines.append(
            f"dead at the last step: {runs[0].dead:,} of {runs[0].n_latents:,} latents"
        )
    # The runs of a pass have the same last progress.
    passes = {id(run.last): run for run in runs}
    for run in passes.values():
        last = run.last
        if last is None:
            lines.append(
                "it had ended before" if is_single else "some had ended before"
            )
            continue
        seconds = max(last.seconds, 1e-9)
        lines.append(
            f"{last.rows:,} rows in {duration(run.seconds)} (training:"
            f" {last.rows / seconds:,.0f} rows/s,"
            f" {last.stall_s / seconds:.1%} of it waiting for rows)"
        )
    return lines


def _next_commands(
    urls: Sequence[str], sweep_folder: str | None, options: str
) -> list[str]:
    """Return where the runs lie, and the commands that may come next."""
    named = " ".join(map(shlex.quote, urls))
    where = f"it lies in {urls[0]}"
    if sweep_folder is not None:
        where = f"they lie in {sweep_folder}"
        if len(urls) > NAMED and Storage(sweep_folder).local is not None:
            # A pattern that the shell expands.
            named = f"{shlex.quote(sweep_folder.rstrip('/'))}/*"
    return [
        where,
        "next:",
        f"  trainer eval {named}{options}",
        f"  trainer report {named}",
    ]
