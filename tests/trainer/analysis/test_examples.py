"""Cross-layer latents: which are chosen, and what is said of them."""

from __future__ import annotations

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from schemas.records import LayerMetrics, ModelMetrics
from schemas.train import TrainSpec
from tests.support import make_store
from trainer.analysis.spread_of_latents import widest
from trainer.evaluation.eval_tables import tables
from trainer.evaluation.metric_definitions import LayerSums, layer_sums, recovered
from trainer.evaluation.metrics_of_rows import (
    evaluate_rows,
    with_model,
    write_evaluation,
)
from trainer.reports.front_of_runs import on_the_front, shown_run
from trainer.reports.run_figures import scatter
from trainer.reports.tables import model_table
from trainer.runs.run_data import read_run, shown_figure
from trainer.runs.trained_sae import load
from trainer.training.train_group import train_group

ROWS = torch.tensor([1000, 1000])


def test_the_widest_of_middling_frequency_come_first() -> None:
    #                        wide  narrow  too frequent  silent  lopsided
    firings = torch.tensor([[10, 20, 900, 0, 30], [10, 0, 900, 0, 5]])
    assert widest(firings, ROWS, 5).tolist() == [0, 4, 1]
    assert widest(firings, ROWS, 1).tolist() == [0]


def test_where_none_is_of_middling_frequency_all_that_fire_count() -> None:
    assert widest(torch.tensor([[900, 0], [800, 0]]), ROWS, 3).tolist() == [0]
    assert widest(torch.zeros(2, 3, dtype=torch.int64), ROWS, 3).tolist() == []


def test_sums_do_not_depend_on_the_batches_they_came_in() -> None:
    made = torch.Generator().manual_seed(0)
    x, again = torch.randn(90, 5, generator=made), torch.randn(90, 5, generator=made)
    latents = torch.randn(90, 8, generator=made).relu()
    mean, norms = torch.randn(5, generator=made), torch.rand(8, generator=made)
    whole = layer_sums(x, again, latents, mean, 0.5, norms)
    parts = LayerSums(torch.zeros(8, dtype=torch.int64))
    for i in range(0, 90, 7):
        at = slice(i, i + 7)
        parts += layer_sums(x[at], again[at], latents[at], mean, 0.5, norms)
    one, other = whole.metrics("s", 5), parts.metrics("s", 5)
    for name in (
        "fvu",
        "mse",
        "mse_per_element",
        "l0",
        "l1",
        "l1_decoder",
        "suppression",
        "reconstruction_bias",
    ):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    assert torch.equal(whole.firings, parts.firings)
    assert one.l1_decoder == pytest.approx(
        float((latents.double() / 0.5 * norms.double()).sum(1).mean()), rel=1e-6
    )


def test_known_values() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    one = layer_sums(
        x,
        x / 2,
        torch.tensor([[1.0, 0.0], [2.0, 3.0]]),
        torch.zeros(2),
        1.0,
        torch.ones(2),
    )
    found = one.metrics("s", 2)
    assert (found.fvu, found.mse, found.mse_per_element) == (0.25, 3.125, 1.5625)
    assert (found.l0, found.l1) == (1.5, 3.0)
    # (2.5 * 2.5) / (2.5 * 5): half as long as it should be
    assert found.reconstruction_bias == 0.5
    # the row of norm 0 has no ratio, and does not count
    assert found.suppression == 0.5
    assert one.density.tolist() == [1.0, 0.5]
    assert recovered(6.0, 4.0, 3.0) == pytest.approx(2 / 3)


def test_nothing_to_divide_by_is_no_figure() -> None:
    """Rows that are all their mean, and zero; an ablation that changes nothing: NaN,
    null in JSON, a dash in tables.
    """
    x = torch.zeros(3, 2)
    one = layer_sums(x, x, torch.zeros(3, 4), torch.zeros(2), 1.0, torch.ones(4))
    found = (one + one).metrics("s", 2)
    assert math.isnan(found.fvu)
    assert math.isnan(found.suppression)
    written = json.loads(found.to_json())
    assert "reconstruction_bias" not in written
    assert math.isnan(found.reconstruction_bias)
    assert (written["fvu"], written["suppression"], written["mse"]) == (None, None, 0.0)
    again = LayerMetrics.model_validate_json(found.to_json())
    assert math.isnan(again.fvu)
    assert again.mse == 0
    assert math.isnan(recovered(3.0, 3.0, 3.0))
    assert (
        shown_figure(found.fvu),
        shown_figure(0.123456),
        shown_figure(2.0, ".4f"),
    ) == (
        "–",
        "0.1235",
        "2.0000",
    )


def test_tables_show_a_dash_and_the_best_run_has_a_figure(memory_url: str) -> None:
    store = make_store(f"{memory_url}/store", n_units=24, values=constant_first)
    spec = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 2, "expansion": 2},
        "stream": {"batch": 128},
        "rows": 256,
    }
    train_group(store, {f"{memory_url}/run": TrainSpec.model_validate(spec)})
    record, firings = evaluate_rows(load(f"{memory_url}/run"), store)
    assert [math.isnan(layer.fvu) for layer in record.layers] == [True, False, False]
    assert record.fvu_layer_mean == pytest.approx(
        sum(layer.fvu for layer in record.layers[1:]) / 2
    )
    assert math.isfinite(record.pooled.fvu)
    effect = {
        "ce_clean": 2,
        "ce_sae": 2,
        "ce_zero": 2,
        "ce_mean": 3,
        "kl": 0.1,
        "tokens": 9,
    }
    one = ModelMetrics.model_validate(
        {"site": "s", "recovered_zero": None, "recovered_mean": 1.0, **effect}
    )
    write_evaluation(f"{memory_url}/run", with_model(record, (one,)), firings)
    run = read_run(f"{memory_url}/run")
    assert math.isnan(run.evaluation.layers[0].fvu)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", str(model_table([run])))
    assert cells[4:8] == ["2.0000", "3.0000", "–", "1.0000"]
    console = Console(width=200, record=True, file=io.StringIO())
    for made in tables(run.evaluation):
        console.print(made)
    # its pooled row has no more to divide by
    assert console.export_text().count("–") == 4
    nothing = record.model_copy(update={"pooled": record.layers[0]})
    worst = run._replace(evaluation=nothing)
    assert on_the_front([worst, run]) == [False, True]
    assert shown_run([worst, run]) is run
    assert json.loads(record.to_json())["layers"][0]["fvu"] is None
    assert len(scatter([run]).series) == 4


def constant_first(site: str, sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Zero everywhere at the first site."""
    rng = np.random.default_rng([int(sequence[0]), len(site)])
    return rng.standard_normal((len(sequence), 16)) * (site != "blocks.0.hook_mlp_out")
