"""A run stitched from several: its latents, its decoder, and that it is a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import trainer
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import RunRecord, StitchRecord
from tests.trainer.stitching.made import (
    SITE,
    axes,
    directions,
    known_store,
    make_run,
    random_dictionary,
    random_rows,
)
from trainer.analysis.sae_table import compute_sae_table, plot_sae_table
from trainer.cli import app
from trainer.errors import DivergedError, RunError
from trainer.runs.trained_sae import load
from trainer.stitching.add import compute_stitch_add
from trainer.stitching.dictionary import dictionary_of
from trainer.stitching.frankenstein import compute_stitch_frankenstein, stitched
from trainer.stitching.retrain_decoder import Retraining, fitted

Runs = tuple[Store, str, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("known")
    store = known_store(str(folder / "store"))
    small, large = directions()
    return (
        store,
        make_run(str(folder / "small"), small, store, scale=0.5),
        make_run(str(folder / "large"), large, store, encoder=torch.linalg.pinv(large)),
    )


def test_novel_latents_are_taken_one_dictionary_after_the_other() -> None:
    q = axes()
    template = random_dictionary(1)

    def made(rows: torch.Tensor) -> Any:
        parts = template.taken(torch.zeros(len(rows), dtype=torch.int64))
        return parts._replace(W_dec=rows)

    first = made(q[:3])
    second = made(torch.stack([q[2], q[3], q[3] + 0.1 * q[4], 0 * q[5], -q[0]]))
    third = made(torch.stack([q[3], q[6]]))
    found = stitched([first, second, third], 0.7)
    # Two of one run that are alike are both taken; what is not unlike is not again.
    assert found.run.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert found.latent.tolist() == [0, 1, 2, 1, 2, 4, 1]
    assert found.without_direction == (0, 1, 0)
    assert found.latents.n_latents == 7


def test_the_decoder_comes_to_the_least_squares_one() -> None:
    """With the encoder frozen that is what it converges to, bias and all."""
    made = random_dictionary(6, d=4, seed=2).with_unit_decoder().to(torch.float32)
    x = torch.cat(random_rows(256, d=4)).float()
    codes = made.encode(x)
    design = torch.cat([codes, torch.ones(256, 1)], dim=1)
    best = torch.linalg.lstsq(design, x, driver="gelsd").solution
    least = float((x - design @ best).square().sum(dim=1).mean())
    n_steps = 3000
    how = Retraining(rows=256 * n_steps, lr=2e-2, batch=256, seed=0)
    seen = []
    found = fitted(
        made, (x for _ in range(n_steps)), how, 3.0, lambda *at: seen.append(at)
    )
    after = float((x - found.reconstruct(x)[0]).square().sum(dim=1).mean())
    before = float((x - made.reconstruct(x)[0]).square().sum(dim=1).mean())
    assert least <= after * 1.0001 < least * 1.01 < before
    torch.testing.assert_close(found.encode(x), codes, rtol=1e-4, atol=1e-4)
    assert seen[-1] == (256 * n_steps, 256 * n_steps)


def test_a_loss_that_is_no_number_ends_it() -> None:
    made = random_dictionary(6, d=4).to(torch.float32)
    how = Retraining(rows=8, lr=1.0, batch=8, seed=0)
    with pytest.raises(DivergedError, match="lower --lr"):
        fitted(made, [torch.full((8, 4), torch.inf)], how, 1.0)


def test_without_retraining_it_is_the_small_sae_with_what_is_new(
    runs: Runs, tmp_path: Path
) -> None:
    _, small, large = runs
    out = str(tmp_path / "out")
    table = compute_stitch_frankenstein([small, large], out, retrain=0)
    assert table["taken"].tolist() == [6, 2]
    one, two, new = (load(run) for run in (small, large, out))
    x = 0.5 + torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    both = dictionary_of(one, SITE).joined(
        dictionary_of(two, SITE).taken(torch.tensor([7, 8]))
    )
    torch.testing.assert_close(
        new.reconstruct(x, SITE), both.reconstruct(x)[0], rtol=1e-4, atol=1e-4
    )
    fires = torch.cat([one.encode(x, SITE) > 0, two.encode(x, SITE)[:, 7:] > 0], dim=1)
    assert torch.equal(new.encode(x, SITE) > 0, fires)
    torch.testing.assert_close(new.decoder.norm(dim=1), torch.ones(8))
    added = compute_stitch_add(small, large)
    wanted = float(added.facts["MSE of small"]) + added["delta_mse"][7:].sum()
    assert table.facts["MSE before retraining (per row)"] == pytest.approx(
        wanted, rel=1e-4
    )
    assert (
        table.facts["MSE after retraining (per row)"]
        == table.facts["MSE before retraining (per row)"]
    )


def test_it_is_a_run_like_any_other(runs: Runs, tmp_path: Path) -> None:
    store, small, large = runs
    out = str(tmp_path / "out")
    words = ["stitch", "frankenstein", small, large, "--out", out, "--rows", "20k"]
    ran = CliRunner().invoke(app, [*words, "--lr", "0.01", "--seed", "3", "--json"])
    assert ran.exit_code == 0, ran.output
    facts = json.loads(ran.stdout)["facts"]
    before = facts["MSE before retraining (per row)"]
    after = facts["MSE after retraining (per row)"]
    assert after < 0.9 * before
    record = StitchRecord.model_validate_json(
        (tmp_path / "out/stitch.json").read_text()
    )
    assert [(run.name, run.n_latents, run.taken) for run in record.runs] == [
        ("small", 6, 6),
        ("large", 9, 2),
    ]
    assert (record.retrained_rows, record.seed) == (20_000, 3)
    assert record.mse_after == pytest.approx(after)
    origins = load_file(tmp_path / "out/stitch.safetensors")
    assert origins["run"].tolist() == [0] * 6 + [1] * 2
    assert origins["latent"].tolist() == [*range(6), 7, 8]
    for run in (small, large, out):
        trainer.evaluate(run, tell=lambda _: None)
    assert load(out).record.rows == 20_000
    trainer.export(out, str(tmp_path / "saelens"))
    again = trainer.import_sae(
        str(tmp_path / "saelens" / SITE), str(tmp_path / "again")
    )
    assert again.record.n_latents == 8
    table = compute_sae_table([large, out, small])
    assert table["run"] == ["small", "out", "large"]
    assert table["sort"] == ["trained", "stitched", "trained"]
    assert table["mse"][1] == pytest.approx(after, rel=1e-4)
    assert table["mse_per_element"][1] == pytest.approx(after / 12, rel=1e-4)
    assert all(value != value for value in table["recovered_zero"])
    front, size = plot_sae_table(table)
    assert [series.name for series in front.series] == ["trained", "stitched"]
    assert [len(series.x) for series in size.series] == [2, 1]


def test_it_is_in_a_report(runs: Runs, tmp_path: Path) -> None:
    _, small, large = runs
    out = str(tmp_path / "stitched")
    compute_stitch_frankenstein([small, large], out, retrain=0)
    trainer.report(out, str(tmp_path / "page.html"))
    assert "stitched" in (tmp_path / "page.html").read_text()


def test_its_evaluation_says_nothing_of_an_l0_that_nobody_asked_for(
    runs: Runs, tmp_path: Path
) -> None:
    _, small, large = runs
    out = str(tmp_path / "out")
    compute_stitch_frankenstein([small, large], out, retrain=4096)
    notes: list[str] = []
    trainer.evaluate(out, tell=notes.append)
    assert notes == []


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (("relu_l1", "relu_l1"), "relu_l1"),
        (("relu_l1", "jumprelu"), "jumprelu"),
        (("batch_topk", "relu_l1"), "jumprelu"),
        (("jumprelu", "gated"), "gated"),
    ],
)
def test_kinds_that_it_holds(
    runs: Runs, tmp_path: Path, kinds: tuple[str, str], wanted: str
) -> None:
    store, *_ = runs
    made = [
        make_run(
            str(tmp_path / str(number)),
            rows,
            store,
            spec={"kind": kind, **({"k": 2} if kind == "batch_topk" else {})},
        )
        for number, (kind, rows) in enumerate(zip(kinds, directions(), strict=True))
    ]
    if "gated" in kinds:
        weights = tmp_path / "1" / "sae.safetensors"
        tensors = load_file(weights)
        tensors["r_mag"] = torch.full((9,), 0.3)
        save_file(tensors, weights)
    if "batch_topk" in kinds:
        weights = tmp_path / "0" / "sae.safetensors"
        tensors = load_file(weights)
        tensors["threshold"] = torch.full((1,), 0.2)
        save_file(tensors, weights)
    out = str(tmp_path / "out")
    compute_stitch_frankenstein(made, out, retrain=0)
    new = load(out)
    assert new.spec.kind == wanted
    x = 0.5 + torch.randn(60, 12, generator=torch.Generator().manual_seed(1))
    fires = torch.cat(
        [
            load(made[0]).encode(x, SITE) > 0,
            load(made[1]).encode(x, SITE)[:, 7:] > 0,
        ],
        dim=1,
    )
    assert torch.equal(new.encode(x, SITE) > 0, fires)
    assert fires.any()


def test_what_is_there_is_not_overwritten_and_halves_are_no_run(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, small, large = runs
    with pytest.raises(RunError, match="not empty"):
        compute_stitch_frankenstein([small, large], large)
    out = str(tmp_path / "out")
    put = Storage.put

    def killed(self: Storage, key: str, data: bytes, **more: Any) -> Any:
        if key == "sae.json":
            raise KeyboardInterrupt
        return put(self, key, data, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            compute_stitch_frankenstein([small, large], out, retrain=0)
    with pytest.raises(RunError, match="wanted a trained SAE"):
        load(out)
    # What an attempt left is no obstacle to the next.
    compute_stitch_frankenstein([small, large], out, retrain=0)
    assert load(out).n_latents == 8


def test_what_cannot_be_stitched_is_refused(runs: Runs, tmp_path: Path) -> None:
    store, small, large = runs
    rows = directions()[1]
    topk = make_run(str(tmp_path / "t"), rows, store, spec={"kind": "topk", "k": 2})
    stray = make_run(str(tmp_path / "s"), rows, content_id="c0ffee")
    out = str(tmp_path / "out")
    for others, message in (
        ([small], "at least two"),
        ([small, topk], "a topk SAE cannot be moved"),
        ([small, stray], "from the store of content id c0ffee"),
    ):
        with pytest.raises(RunError, match=message):
            compute_stitch_frankenstein(others, out)
    with pytest.raises(RunError, match="from the store of content id c0ffee"):
        compute_stitch_frankenstein([small, stray], out, store=store.url)
    assert Storage(out).is_empty()
    told: list[str] = []
    compute_stitch_frankenstein([large, small], out, retrain=0, tell=told.append)
    assert "not in order of size" in told[0]
    assert RunRecord.model_validate_json(
        (tmp_path / "out/sae.json").read_text()
    ).sites == (SITE,)
