"""Lays an evaluation out as tables for a terminal, which fit into 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from actstore.figures.layer_order import short_site
from trainer.runs.run_data import model_effects, model_figures, row_figures, rows_phrase

if TYPE_CHECKING:
    from schemas.records import CheckpointEval, EvalRecord

_ROW_HEADS = ("FVU", "MSE", "L0", "L1", "L1 dec", "suppr")
_ROW_CAPTION = (
    "L1 dec: L1 weighted by decoder norms; suppr: suppression, mean |x'| / |x|"
)
_MODEL_TITLE = "CE and KL in nats per token; rec: share of CE recovered"
_MODEL_HEADS = (
    "CE clean",
    "CE SAE",
    "CE zero",
    "CE mean",
    "rec zero",
    "rec mean",
    "KL",
)


def tables(record: EvalRecord) -> list[Table]:
    """Return a table of metrics, and one of the effect on the model if it is known."""
    name = f"{record.name} ({record.run})" if record.name else record.run
    title = f"{name}: {rows_phrase(record)}; never fired on them: {record.dead} latents"
    lines = [
        [layer.site, *row_figures(layer)] for layer in (*record.layers, record.pooled)
    ]
    metrics = _table(title, _ROW_HEADS, lines, _ROW_CAPTION)
    effects = model_effects(record)
    if not effects:
        return [metrics]
    effect_lines = [[effect.site, *model_figures(effect)] for effect in effects]
    return [metrics, _table(_MODEL_TITLE, _MODEL_HEADS, effect_lines)]


def over_training(run: str, records: Sequence[CheckpointEval]) -> Table:
    """Return a table of the SAEs that a run kept from its training, by rows seen."""
    with_model = any(record.evaluation.model_pooled for record in records)
    shown = [_ROW_HEADS.index(head) for head in ("FVU", "L0", "suppr")]
    heads = ["dead", *(_ROW_HEADS[i] for i in shown)]
    if with_model:
        heads += ["rec zero", "KL"]
    lines = []
    for record in records:
        evaluation = record.evaluation
        figures = row_figures(evaluation.pooled)
        line = [
            f"{record.rows:,}",
            f"{evaluation.dead:,}",
            *(figures[i] for i in shown),
        ]
        if with_model and evaluation.model_pooled is not None:
            effect = model_figures(evaluation.model_pooled)
            line += [effect[_MODEL_HEADS.index("rec zero")], effect[-1]]
        lines.append(line)
    title = f"{run}: SAEs from its training"
    caption = "suppr: suppression, mean |x'| / |x|"
    return _table(title, heads, lines, caption, first="rows seen")


def _table(
    title: str,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    caption: str | None = None,
    first: str = "layer",
) -> Table:
    """Return a table with a line for each layer, or for what `first` names.

    Where the terminal is narrow, names of layers are broken and figures are not.
    """
    table = Table(
        title=Text(title),
        caption=caption,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_style="italic",
        pad_edge=False,
    )
    # A figure that is cut short would read as another figure; a name would not.
    table.add_column(first, overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for site, *figures in lines:
        table.add_row(Text(short_site(site)), *figures)
    return table
