"""Tests of what a trained SAE says of itself, and of rows that it cannot take.

Also of the tables of `trainer eval`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from rich.console import Console

from schemas.records import EvalRecord, LayerMetrics, ModelMetrics, RunRecord
from schemas.sae import SaeSpec
from trainer.errors import SaeError
from trainer.evaluation.eval_tables import tables
from trainer.evaluation.metric_definitions import pooled
from trainer.evaluation.metrics_of_rows import with_model
from trainer.runs.trained_sae import TrainedSae
from trainer.saes.build import build

SITES = ("a<b>", "b", "c")


def trained(spec: dict[str, Any], **more: Any) -> TrainedSae:
    sae: SaeSpec = TypeAdapter(SaeSpec).validate_python(spec)
    record = RunRecord(
        sae=sae, d=6, n_latents=sae.size(6), sites=SITES, rescale="log", center=False, store="s", content_id="c",
        model="m", steps=1, rows=2, seed=0, **more,
    )  # fmt: skip
    return TrainedSae(record, build(sae, 6, n_sites=3), torch.ones(3), None, "runs/x")


def test_shapes_are_told() -> None:
    sae = trained({"kind": "topk", "k": 2})
    x = torch.randn(4, 6)
    latents = sae.encode(x, torch.tensor([0, 1, 2, 0]))
    assert sae.decode(latents, 1).shape == (4, 6)
    folded = sae.fold(0)
    wrong: list[tuple[Any, str]] = [
        (
            lambda: sae.encode(torch.randn(4, 12), 0),
            r"encode: wanted activations, a tensor \[..., 6\]; got \[4, 12\]",
        ),
        (lambda: sae.encode(np.zeros((4, 6)), 0), r"got ndarray; torch.from_numpy"),  # type: ignore[arg-type]
        (lambda: sae.encode(torch.tensor(1.0), 0), r"got \[\]"),
        (
            lambda: sae.decode(x, 0),
            r"decode: wanted latents, a tensor \[..., 48\]; got \[4, 6\]",
        ),
        (
            lambda: sae.reconstruct(latents, 0),
            r"wanted activations, a tensor \[..., 6\]",
        ),
        (
            lambda: sae.encode(x, torch.tensor([0, 1])),
            r"int64 indices of sites \[4\].*got int64 \[2\]",
        ),
        (lambda: sae.encode(x, torch.zeros(4)), "got float32"),
        (
            lambda: sae.encode(x, torch.tensor([0, 1, 2, 3])),
            "0 to 3; this SAE has 3 sites",
        ),
        (lambda: sae.decode(latents, torch.tensor([0, 1, -1, 0])), "-1 to 1"),
        (lambda: folded.encode(latents), r"wanted activations, a tensor \[..., 6\]"),
        (lambda: folded.decode(x), r"wanted latents, a tensor \[..., 48\]"),
    ]
    for call, message in wrong:
        with pytest.raises(SaeError, match=message):
            call()


def test_shapes_of_a_crosscoder() -> None:
    sae = trained({"kind": "crosscoder", "inner": {"kind": "topk", "k": 2}})
    assert sae.encode(torch.randn(5, 2, 3, 6)).shape == (5, 2, 48)
    with pytest.raises(
        SaeError,
        match=r"activations of all sites, a tensor \[..., 3, 6\]; got \[5, 6\]",
    ):
        sae.encode(torch.randn(5, 6))
    with pytest.raises(SaeError, match="takes no layer"):
        sae.encode(torch.randn(5, 3, 6), 0)


def test_what_is_shown() -> None:
    sae = trained({"kind": "relu_l1"}, name="<i>mine</i>")
    for word in (
        "runs/x",
        "relu_l1",
        "latents 48",
        "d 6",
        "rescale log",
        "2 rows of s",
    ):
        assert word in repr(sae)
    assert "&lt;i&gt;mine" in sae._repr_html_()
    assert "<b>" not in sae._repr_html_()


def record(name: str) -> EvalRecord:
    """Of 12 layers, with figures as wide as they come."""
    figures = {
        "rows": 10,
        "fvu": 0.0012345,
        "mse": 1.2345e9,
        "mse_per_element": 1,
        "l0": 1234.5,
        "l1": 98765.4,
    }
    layers = [
        LayerMetrics(
            site=name.format(i), l1_decoder=1.2341e-7, suppression=0.84352, **figures
        )
        for i in range(12)
    ]
    effects = tuple(
        ModelMetrics(
            site=name.format(i), tokens=0 if i == 11 else i + 1, ce_clean=3.0, ce_sae=3.0 + i, ce_zero=10.9876,
            ce_mean=9.8765, recovered_zero=-10.98765, recovered_mean=0.98765, kl=math.nan if i == 11 else float(i),
        )
        for i in range(12)
    )  # fmt: skip
    made = EvalRecord(
        run="runs/[red]a", name="[bold]mine", store="s", content_id="c", split="held_out", rows=10**9,
        pooled=layers[0].model_copy(update={"site": "pooled"}), fvu_layer_mean=1, layers=tuple(layers), dead=3,
        dead_rows=3, alive_share=1,
    )  # fmt: skip
    return with_model(made, effects)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.{}.hook_mlp_out",
        "blocks.{}.attn.hook_z",
        "model.layers.{}.self_attn.o_proj",
    ],
)
def test_tables_fit_80_columns_and_cut_no_figure_off(name: str) -> None:
    console = Console(width=80, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        for one in tables(record(name)):
            console.print(one)
        text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("1.234e-07") == 13  # l1_decoder beside l1
    assert text.count("-10.9877") == 12
    assert "[bold]mine (runs/[red]a)" in text
    last = [
        line.split() for line in text.splitlines() if line.strip().startswith("pooled")
    ]
    assert [len(line) for line in last] == [7, 8]


def test_the_pooled_row_is_over_tokens() -> None:
    made = record("{}")
    found = made.model_pooled
    assert found is not None
    weights, ce = np.arange(1, 12), 3.0 + np.arange(11)
    assert found.tokens == weights.sum()
    assert found.ce_sae == pytest.approx((weights * ce).sum() / weights.sum())
    assert found.kl == pytest.approx((weights * np.arange(11)).sum() / weights.sum())
    assert found.recovered_zero == pytest.approx(
        (10.9876 - found.ce_sae) / (10.9876 - 3)
    )
    assert EvalRecord.model_validate_json(made.to_json()).model_pooled == found
    nothing = pooled([one.model_copy(update={"tokens": 0}) for one in made.model])
    assert math.isnan(nothing.ce_sae)
    assert math.isnan(nothing.recovered_zero)
