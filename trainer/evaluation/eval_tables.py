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
    from schemas.records import EvalRecord

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


def _table(
    title: str,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    caption: str | None = None,
) -> Table:
    """Return a table with a line for each layer.

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
    table.add_column("layer", overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for site, *figures in lines:
        table.add_row(Text(short_site(site)), *figures)
    return table
