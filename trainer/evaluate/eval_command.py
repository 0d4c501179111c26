"""`trainer eval`. Importing this loads typer only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actstore.console.cli_options import AsJson, Device, TrustAgain, one_of

if TYPE_CHECKING:
    from schemas.records import EvalRecord

SEQUENCES = 64
AllRows = Annotated[
    bool,
    typer.Option(
        "--all-rows", help="Also rows that the run's own filter left out of training."
    ),
]


def eval_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders.")],
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The store.",
            show_default="the one the run was trained from",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="held_out or train.",
            autocompletion=one_of("held_out", "train"),
        ),
    ] = "held_out",
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="Rows per site at most: 50k, 1M.",
            show_default="all of them",
        ),
    ] = None,
    all_rows: AllRows = False,
    ce: Annotated[
        bool,
        typer.Option(
            "--ce",
            help="Also run the language model: CE and KL with each site patched.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model, if it is not where the harvest found it; implies --ce.",
            show_default="the store's",
        ),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Held-out sequences for CE and KL.",
            show_default="64",
        ),
    ] = None,
    trust_remote_code: TrustAgain = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Metrics of trained SAEs per layer and pooled, from held-out rows; written to
    RUN/eval.json.
    """
    from rich.console import Console
    from rich.progress import Progress

    from actstore.console.counts import parse_count
    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.evaluate import row_metrics
    from trainer.evaluate.calibrate import asked_l0, check_filtered, off_target
    from trainer.runs.run_store import store_of
    from trainer.runs.trained_sae import load

    with_model = ce or model is not None
    _check_options(split, sequences, with_model, trust_remote_code)
    check_filtered(runs, all_rows)
    keep_freed_memory()
    for run in runs:
        sae = load(run, device=device)
        opened, note = store_of(run, sae.record, store)
        if note is not None:
            typer.echo(f"note: {note}", err=True)
        with Progress(*_columns(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"evaluating {run}", total=None)
            tick = _tick(bar, task)
            most = None if rows is None else parse_count(rows)
            subject = (
                _subject(sae, opened, model, device, trust_remote_code)
                if with_model
                else None
            )
            record, firings = row_metrics.evaluate(
                sae, opened, split, most, tick, all_rows
            )
            if subject is not None:
                from trainer.evaluate.model_metrics import model_metrics

                bar.update(task, description=f"language model, {run}", completed=0)
                found = model_metrics(
                    sae, opened, model, sequences or SEQUENCES, device, tick, subject
                )
                record = row_metrics.with_model(record, found)
        row_metrics.write(run, record, firings)
        for line in _notes(run, record, most, off_target(record, asked_l0(sae))):
            typer.echo(line, err=True)
        if as_json:
            typer.echo(record.model_dump_json())
        else:
            for table in tables(record):
                Console().print(table)


def _check_options(
    split: str, sequences: int | None, with_model: bool, trust_remote_code: bool
) -> None:
    from trainer.errors import TrainerError

    if split not in {"held_out", "train"}:
        raise TrainerError(f"--split {split}: wanted held_out or train")
    if trust_remote_code and not with_model:
        raise TrainerError(
            "--trust-remote-code: no model is run; leave it out, or add --ce"
        )
    if sequences is not None and not with_model:
        raise TrainerError("--sequences is of --ce; give that too, or leave it out")


def _notes(
    run: str, record: EvalRecord, asked: int | None, off: str | None
) -> Iterator[str]:
    """What is to be said of an evaluation beside its figures. off: how its L0 differs
    from what was asked for.
    """
    there = min(layer.rows for layer in record.layers)
    if asked is not None and there < asked:
        yield (
            f"note: {run}: there are {there:,} such rows of each site, {asked:,} were"
            " asked"
        )
    if record.model and record.filter is not None:
        yield (
            f"note: {run}: CE and KL are of all ordinary tokens, also of those its"
            " filter leaves out"
        )
    if off is not None:
        yield f"warning: {run}: {off}"


def _subject(sae: Any, store: Any, model: str | None, device: str, trust: bool) -> Any:
    """The language model, before any row is evaluated: what it cannot be used for is
    said at once.
    """
    from trainer.evaluate.model_metrics import subject_of

    return subject_of(sae, store, model, device, trust_remote_code=trust)


def calibrate_command(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders, imported ones too."),
    ],
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The store.",
            show_default="the one the run was trained from",
        ),
    ] = None,
    l0: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Mean active latents per row.",
            show_default="k or target_l0 of the run",
        ),
    ] = None,
    all_rows: AllRows = False,
    device: Device = "cpu",
) -> None:
    """Set the thresholds of trained SAEs so that held-out rows have the wanted L0.
    Training ends with this; it is for imported SAEs, another store, or another L0.
    """
    from actstore.machine.glibc_malloc import keep_freed_memory
    from trainer.errors import TrainerError
    from trainer.evaluate.calibrate import calibrate, check_filtered, write
    from trainer.runs.run_store import store_of
    from trainer.runs.trained_sae import load

    if l0 is not None and not l0 > 0:
        raise TrainerError(f"--l0 {l0:g}: wanted a number above 0")
    check_filtered(runs, all_rows)
    keep_freed_memory()
    for run in runs:
        sae = load(run, device=device)
        opened, note = store_of(run, sae.record, store)
        if note is not None:
            typer.echo(f"note: {note}", err=True)
        found = calibrate(sae, opened, l0, all_rows)
        write(run, sae, found)
        typer.echo(
            f"{run}: thresholds set for an L0 of {found:g}; next: trainer eval {run}"
        )


def tables(record: EvalRecord) -> list[Any]:
    """The record as rich tables, which fit into 80 columns."""
    from trainer.runs.run_data import rows_of, shown

    called = f"{record.name} ({record.run})" if record.name else record.run
    head = f"{called}: {rows_of(record)}; never fired on them: {record.dead} latents"
    names = ("FVU", "MSE", "L0", "L1", "L1 dec", "suppr")
    caption = (
        "L1 dec: L1 weighted by decoder norms; suppr: suppression, mean |x'| / |x|"
    )
    lines = [
        (
            one.site,
            *map(
                shown,
                (one.fvu, one.mse, one.l0, one.l1, one.l1_decoder, one.suppression),
            ),
        )
        for one in (*record.layers, record.pooled)
    ]
    first = _table(head, names, lines, caption)
    if not record.model:
        return [first]
    rows = (*record.model, *([record.model_pooled] if record.model_pooled else []))
    effects = []
    for row in rows:
        values = (
            row.ce_clean,
            row.ce_sae,
            row.ce_zero,
            row.ce_mean,
            row.recovered_zero,
            row.recovered_mean,
            row.kl,
        )
        effects.append((row.site, *(shown(v, ".4f") for v in values)))
    heads = ("CE clean", "CE SAE", "CE zero", "CE mean", "rec zero", "rec mean", "KL")
    return [
        first,
        _table(
            "CE and KL in nats per token; rec: share of CE recovered", heads, effects
        ),
    ]


def _table(
    title: str,
    names: Sequence[str],
    lines: Sequence[tuple[str, ...]],
    caption: str | None = None,
) -> Any:
    """A table of layers; where it is narrow, names of layers are broken and figures are
    not.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from trainer.runs.run_data import short

    table = Table(
        title=Text(title),
        caption=caption,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_style="italic",
        pad_edge=False,
    )
    table.add_column("layer", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for site, *figures in lines:
        table.add_row(Text(short(site)), *figures)
    return table


def _columns() -> list[Any]:
    """A bar that leaves percentage and time their place, however long the run's path
    is.
    """
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        TaskProgressColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Description(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.description, overflow="ellipsis", no_wrap=True)

    return [
        Description(),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
    ]


def _tick(bar: Any, task: Any) -> Any:
    return lambda done, total: bar.update(task, completed=done, total=total)
