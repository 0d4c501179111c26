"""`trainer eval`. Importing this loads typer only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from schemas.records import EvalRecord


def eval_command(
    runs: Annotated[list[str], typer.Argument(help="Run folders.")],
    store: Annotated[str | None, typer.Option(help="The store; default: the one the run was trained from.")] = None,
    split: Annotated[str, typer.Option(help="held_out or train.")] = "held_out",
    rows: Annotated[str | None, typer.Option(help="Rows per site at most: 50k, 1M.")] = None,
    ce: Annotated[
        bool, typer.Option("--ce", help="Also run the language model: CE and KL with each site patched.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="The model, if not where the harvest found it; implies --ce.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Held-out sequences for CE and KL.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Metrics of trained SAEs per layer and pooled, from held-out rows; written to RUN/eval.json."""
    from rich.console import Console
    from rich.progress import Progress

    from actstore.allocator import keep_freed_memory
    from actstore.harvesting.specs import parse_count
    from actstore.store import open as open_store
    from trainer.errors import TrainerError
    from trainer.evaluate import rows as on_rows
    from trainer.trained import load

    if split not in {"held_out", "train"}:
        raise TrainerError(f"--split {split}: wanted held_out or train")
    keep_freed_memory()
    for run in runs:
        sae = load(run, device=device)
        if not (store or sae.record.store):
            raise TrainerError(f"{run}: it was imported without a store; say which one with --store")
        opened = open_store(store or sae.record.store)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"evaluating {run}", total=None)
            tick = _tick(bar, task)
            record, firings = on_rows.evaluate(sae, opened, split, None if rows is None else parse_count(rows), tick)
            if ce or model is not None:
                from trainer.evaluate.model import model_metrics

                bar.update(task, description=f"language model, {run}", completed=0)
                record = on_rows.with_model(record, model_metrics(sae, opened, model, sequences, device, tick))
        on_rows.write(run, record, firings)
        if as_json:
            typer.echo(record.model_dump_json())
        else:
            for table in tables(record):
                Console().print(table)


def tables(record: EvalRecord) -> list[Any]:
    """The record as rich tables."""
    from rich.box import SIMPLE
    from rich.table import Table

    from trainer.analysis.run import short, shown

    head = f"{record.run}: {record.rows:,} {record.split} rows; never fired on them: {record.dead} latents"
    first = Table(title=head)
    for name in ("layer", "FVU", "MSE", "L0", "L1", "suppression"):
        first.add_column(name, justify="left" if name == "layer" else "right")
    for one in (*record.layers, record.pooled):
        first.add_row(short(one.site), *(shown(v) for v in (one.fvu, one.mse, one.l0, one.l1, one.suppression)))
    if not record.model:
        return [first]
    second = Table(title="CE and KL in nats per token; rec: share of CE recovered", box=SIMPLE)
    for name in ("layer", "CE clean", "CE SAE", "CE zero", "CE mean", "rec zero", "rec mean", "KL"):
        second.add_column(name, justify="left" if name == "layer" else "right")
    for row in record.model:
        values = (row.ce_clean, row.ce_sae, row.ce_zero, row.ce_mean, row.recovered_zero, row.recovered_mean, row.kl)
        second.add_row(short(row.site), *(shown(v, ".4f") for v in values))
    return [first, second]


def _tick(bar: Any, task: Any) -> Any:
    return lambda done, total: bar.update(task, completed=done, total=total)
