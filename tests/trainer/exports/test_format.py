"""SAELens folders without SAELens: keys, shapes, folding; what has no counterpart; our
own format and its card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from typer.testing import CliRunner

import trainer
from actstore.errors import ExistsError, SpecError
from actstore.format.storage import Storage
from actstore.store.store import Store
from schemas.records import EvalRecord, LayerMetrics, ModelMetrics
from tests.support import make_store
from tests.trainer.exchange import (
    D_OUT,
    NONE,
    SITES,
    SPECS,
    D,
    M,
    decode,
    encode,
    gap,
    make_run,
    random_state,
    rows,
)
from trainer.cli import app
from trainer.errors import ExchangeError, RunError, SaeError
from trainer.evaluation.metrics_of_rows import evaluate_rows, write_evaluation
from trainer.exports import neutral_form
from trainer.exports.export import export
from trainer.exports.saelens_format import folder
from trainer.imports.import_sae import import_sae

ARCHITECTURES = {
    "relu_l1": "standard",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
}
CONFIG_KEYS = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", n_units=24)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_a_folder_computes_what_the_layer_does(
    tmp_path: Path, name: str, center: bool
) -> None:
    spec = SPECS[name]
    run = make_run(str(tmp_path / "run"), spec, center=center)
    export(run, str(tmp_path / "out"), "saelens")
    sae, x = trainer.load(run), rows()
    for site in SITES:
        config = json.loads((tmp_path / "out" / site / "cfg.json").read_text())
        tensors = load_file(tmp_path / "out" / site / "sae_weights.safetensors")
        wanted = {
            "architecture": ARCHITECTURES.get(spec["kind"], spec["kind"]),
            "d_in": D,
            "d_sae": M,
        }
        assert {key: config[key] for key in wanted} == wanted
        latents = encode(config["architecture"], tensors, x, config.get("k"))
        assert gap(sae.encode(x, site), latents) < 1e-5
        assert (
            gap(sae.decode(sae.encode(x, site), site), decode(tensors, latents)) < 1e-5
        )
        folded = sae.fold(site)
        assert gap(folded.encode(x), latents) < 1e-5
        assert gap(folded.decode(folded.encode(x)), decode(tensors, latents)) < 1e-5


@pytest.mark.parametrize(
    ("spec", "more"),
    [(SPECS["relu"], set()), (SPECS["topk"], {"k", "rescale_acts_by_decoder_norm"})],
)
def test_files_keys_and_shapes_are_exact(
    tmp_path: Path, store: Store, spec: dict[str, Any], more: set[str]
) -> None:
    run = make_run(str(tmp_path / "run"), spec, store)
    export(run, str(tmp_path / "out"), "saelens")
    files = {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files == {"README.md"} | {
        f"{s}/{n}" for s in SITES for n in ("cfg.json", "sae_weights.safetensors")
    }
    config = json.loads((tmp_path / "out" / SITES[1] / "cfg.json").read_text())
    assert set(config) == CONFIG_KEYS | more
    assert config["apply_b_dec_to_input"] is True
    assert (config["normalize_activations"], config["reshape_activations"]) == (
        "none",
        "none",
    )
    about = config["metadata"]
    assert int(about["sae_lens_version"].split(".")[0]) >= 6
    assert about["hook_name"] == SITES[1]
    assert about["actstore_content_id"] == store.manifest.content_id
    assert (about["context_size"], about["prepend_bos"], about["dataset_path"]) == (
        32,
        False,
        "synthetic",
    )
    assert about["model_class_name"] == "HookedTransformer"
    assert about["model_from_pretrained_kwargs"]["center_writing_weights"] is False
    assert about["model_from_pretrained_kwargs"]["fold_ln"] is False
    tensors = load_file(tmp_path / "out" / SITES[1] / "sae_weights.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "W_enc": (D, M),
        "b_enc": (M,),
        "W_dec": (M, D),
        "b_dec": (D,),
    }
    assert all(
        value.dtype == torch.float32 and value.is_contiguous()
        for value in tensors.values()
    )


def test_the_run_id_follows_the_weights(tmp_path: Path) -> None:
    ids = set()
    for name, k in (("a", 3), ("b", 4), ("c", 3)):
        export(
            make_run(str(tmp_path / name), {"kind": "topk", "k": k}),
            str(tmp_path / f"{name}.out"),
            "saelens",
        )
        config = json.loads(
            (tmp_path / f"{name}.out" / SITES[0] / "cfg.json").read_text()
        )
        ids.add(config["metadata"]["actstore_run_id"])
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("kind", "architecture", "names"),
    [
        ("jumprelu", "jumprelu", ("b_enc", "threshold")),
        ("batch_topk", "jumprelu", ("b_enc", "threshold")),
        ("matryoshka", "jumprelu", ("b_enc", "threshold")),
        ("gated", "gated", ("b_gate", "b_mag", "r_mag")),
    ],
)
def test_folding_of_every_architecture(
    kind: str, architecture: str, names: tuple[str, ...]
) -> None:
    state = random_state("W_enc", "W_dec", "b_dec", *names)
    given = dict(state)
    # one threshold for all latents, and what counts its updates
    if kind == "batch_topk":
        state["threshold"] = torch.tensor(0.7)
        given |= {"threshold": torch.tensor([0.7]), "updates": torch.zeros(1)}
    if kind == "matryoshka":  # a bias and a threshold for each layer
        state["threshold"] = torch.tensor(0.6)
        given |= {"threshold": torch.tensor([9.0, 0.6, 8.0]), "b_dec": rows(3, seed=2)}
        state["b_dec"] = given["b_dec"][1]
    if kind == "jumprelu":
        given["log_threshold"] = torch.stack(
            [given["threshold"], given.pop("threshold").double()]
        ).log()
    mean, scale, x = rows(1, seed=4)[0], 0.37, rows()
    made = neutral_form.folded(kind, given, scale, mean, layer=1)
    assert made.architecture == architecture
    assert set(made.tensors) == {"W_enc", "W_dec", "b_dec", *names}
    inner = (x.double() - mean) * scale
    latents = encode(architecture, state, inner)
    assert 0.1 < float((latents > 0).double().mean()) < 0.9
    assert gap(encode(architecture, made.tensors, x), latents) < 1e-12
    assert (
        gap(decode(made.tensors, latents), decode(state, latents) / scale + mean)
        < 1e-12
    )
    written = load_tensors(folder(made, "s", {})["sae_weights.safetensors"])
    assert gap(encode(architecture, written, x), latents) < 1e-5


def test_folding_between_two_sites() -> None:
    d_out = 11
    state = random_state("W_enc", "b_enc", "W_dec", "b_dec", d_out=d_out)
    mean, mean_out, x = rows(1, seed=4)[0], rows(1, d_out, seed=6)[0], rows()
    made = neutral_form.transcoder(state, 0.4, mean, 1.7, mean_out)
    latents = encode("transcoder", state, (x.double() - mean) * 0.4, subtract=False)
    assert gap(encode("transcoder", made.tensors, x, subtract=False), latents) < 1e-12
    assert (
        gap(decode(made.tensors, latents), decode(state, latents) / 1.7 + mean_out)
        < 1e-12
    )
    config = json.loads(folder(made, "s", {})["cfg.json"])
    assert (config["d_in"], config["d_out"], config["apply_b_dec_to_input"]) == (
        D,
        d_out,
        False,
    )


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_unit_decoders_change_latents_by_the_norm_only(architecture: str) -> None:
    given = {
        n: v.double()
        for n, v in random_state(*neutral_form.names(architecture)).items()
    }
    given["W_dec"][3] = 0
    made, x, norms = (
        neutral_form.with_unit_decoder(neutral_form.PlainSae(architecture, given)),
        rows(),
        given["W_dec"].norm(dim=1),
    )
    latents = encode(architecture, given, x)
    again = encode(architecture, made.tensors, x)
    assert gap(again, latents * norms) < 1e-12
    assert gap(decode(made.tensors, again), decode(given, latents)) < 1e-12
    assert torch.allclose(made.tensors["W_dec"].norm(dim=1), (norms > 0).double())


@pytest.mark.parametrize("name", NONE)
def test_runs_that_the_format_cannot_hold_are_refused_and_go_out_in_our_own(
    tmp_path: Path, name: str
) -> None:
    spec, because = NONE[name]
    run = make_run(str(tmp_path / "run"), spec)
    with pytest.raises(
        ExchangeError,
        match=f"a {spec['kind']} SAE cannot be written for SAELens: .*{because}",
    ):
        export(run, str(tmp_path / "out"), "saelens")
    assert not (tmp_path / "out").exists()
    export(run, str(tmp_path / "out"), "safetensors")
    mine, again = trainer.load(run), trainer.load(str(tmp_path / "out"))
    x, layer = (
        (torch.randn(5, 3, D), None) if spec["kind"] == "crosscoder" else (rows(5), 1)
    )
    assert torch.equal(mine.encode(x, layer), again.encode(x, layer))


@pytest.mark.parametrize("center", [True, False])
def test_a_transcoder_goes_out_and_comes_back(tmp_path: Path, center: bool) -> None:
    spec = {
        "kind": "transcoder",
        "inner": {"kind": "relu_l1", "n_latents": M, "per_layer_bias": True},
    }
    run = make_run(str(tmp_path / "run"), spec, center=center)
    export(run, str(tmp_path / "out"), "saelens")
    sae, x = trainer.load(run), rows()
    for i, site in enumerate(SITES):
        folder_ = tmp_path / "out" / f"{site}--{site}.out"
        config, tensors = (
            json.loads((folder_ / "cfg.json").read_text()),
            load_file(folder_ / "sae_weights.safetensors"),
        )
        assert (
            config["architecture"],
            config["d_out"],
            config["apply_b_dec_to_input"],
        ) == ("transcoder", D_OUT, False)
        assert config["metadata"]["hook_name_out"] == f"{site}.out"
        latents = encode("transcoder", tensors, x, subtract=False)
        assert gap(sae.encode(x, site), latents) < 1e-5
        assert gap(sae.reconstruct(x, i), decode(tensors, latents)) < 1e-5
        import_sae(str(folder_), str(tmp_path / f"back{i}"))
        back = trainer.load(str(tmp_path / f"back{i}"))
        assert (back.record.sites, back.record.targets, back.record.d_out) == (
            (site,),
            (f"{site}.out",),
            D_OUT,
        )
        assert gap(back.reconstruct(x, site), decode(tensors, latents)) < 1e-5
    assert (
        f'load_from_disk("{SITES[0]}--{SITES[0]}.out")'
        in (tmp_path / "out/README.md").read_text()
    )


def test_a_skip_connection_is_part_of_the_output(tmp_path: Path) -> None:
    spec = {
        "kind": "transcoder",
        "skip": True,
        "inner": {"kind": "relu_l1", "n_latents": M},
    }
    sae, x = trainer.load(make_run(str(tmp_path / "run"), spec)), rows()
    inner = (x - sae.mean[1]) * sae.scale[1]
    wanted = (
        sae.sae.decode(sae.sae.encode(inner)) + inner @ sae.sae.W_skip
    ) / sae.scale_out[1] + sae.mean_out[1]
    assert gap(sae.reconstruct(x, SITES[1]), wanted) < 1e-5
    with pytest.raises(SaeError, match="no SAE of one layer"):
        sae.fold(0)
    with pytest.raises(SaeError, match="another site than its input"), sae.attach(None):
        pass


def test_what_has_no_counterpart_is_refused() -> None:
    state = random_state("W_enc", "W_dec", "b_dec", "b_enc")
    for kind, because in (
        ("nsae", "tanh"),
        ("mlp_encoder", "more than one"),
        ("crosscoder", "several sites"),
    ):
        with pytest.raises(
            ExchangeError,
            match=f"a {kind} SAE cannot be written for SAELens: .*{because}",
        ):
            neutral_form.folded(kind, state)
    with pytest.raises(ExchangeError, match="b_mag is missing"):
        neutral_form.folded(
            "gated", random_state("W_enc", "W_dec", "b_dec", "b_gate", "r_mag")
        )
    with pytest.raises(ExchangeError, match="extra is there besides"):
        neutral_form.folded("relu_l1", state | {"extra": torch.zeros(3)})
    with pytest.raises(ExchangeError, match=r"b_enc is \[3\], wanted \[40\]"):
        neutral_form.folded("relu_l1", state | {"b_enc": torch.zeros(3)})
    with pytest.raises(ExchangeError, match=r"W_enc is \[16\], wanted \[d, m\]"):
        neutral_form.folded("relu_l1", state | {"W_enc": torch.zeros(D)})
    with pytest.raises(ExchangeError, match="W_dec has values that are not finite"):
        neutral_form.folded("relu_l1", state | {"W_dec": state["W_dec"] / 0})
    with pytest.raises(ExchangeError, match="wanted a k from 1 to 40, got None"):
        neutral_form.folded("topk", state)


def test_heads_are_reshaped_where_saelens_hooks_them() -> None:
    made = neutral_form.folded(
        "relu_l1", random_state("W_enc", "W_dec", "b_dec", "b_enc")
    )
    config = json.loads(folder(made, "blocks.1.attn.hook_z", {})["cfg.json"])
    assert config["reshape_activations"] == "hook_z"


def test_sparsity_comes_from_the_evaluation(tmp_path: Path, store: Store) -> None:
    run = make_run(str(tmp_path / "run"), {"kind": "topk", "k": 5}, store)
    record, firings = evaluate_rows(trainer.load(run), store)
    write_evaluation(run, record, firings)
    export(run, str(tmp_path / "out"), "saelens")
    for i, layer in enumerate(record.layers):
        found = load_file(tmp_path / "out" / layer.site / "sparsity.safetensors")
        assert set(found) == {"sparsity"}
        wanted = (firings[i].double() / layer.rows + 1e-10).log10()
        assert torch.allclose(found["sparsity"].double(), wanted, atol=1e-5)


def test_our_own_format_loads_again(tmp_path: Path, memory_url: str) -> None:
    run = make_run(str(tmp_path / "run"), {"kind": "topk", "k": 5})
    Storage(run).put("eval.json", _evaluation().to_json().encode())
    assert export(run, f"{memory_url}/out", "safetensors") == f"{memory_url}/out"
    mine, again, x = trainer.load(run), trainer.load(f"{memory_url}/out"), rows()
    assert all(
        torch.equal(mine.encode(x, site), again.encode(x, site)) for site in SITES
    )
    card = Storage(f"{memory_url}/out").read("README.md").decode()
    assert card.startswith("---\nlibrary_name: actstore\n")
    for text in (
        "c0ffee",
        "topk: k 5",
        "| blocks.1.hook_mlp_out | 0.125 | 2 | 5 | 6 | 6 | 0.75 |",
        "0.9100",
        "16,384",
    ):
        assert text in card
    with pytest.raises(ExistsError, match="new or empty folder"):
        export(run, f"{memory_url}/out", "safetensors")


def test_the_command(tmp_path: Path, store: Store) -> None:
    run, out = (
        make_run(str(tmp_path / "run"), {"kind": "relu_l1"}, store),
        str(tmp_path / "out"),
    )
    done = CliRunner().invoke(app, ["export", run, out])
    assert done.exit_code == 0, done.output
    assert done.output == f"export: {out}\n"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated." in card
    assert "synthetic, contexts of 32 tokens" in card
    other = make_store(tmp_path / "other", n_units=20, seed=3)
    for options, error, text in (
        (["--to", "pickle"], SpecError, "--to: wanted saelens or safetensors"),
        (["--store", other.url], ExchangeError, "its content id is"),
    ):
        failed = CliRunner().invoke(
            app, ["export", run, str(tmp_path / "new"), *options]
        )
        assert isinstance(failed.exception, error)
        assert text in str(failed.exception)
    with pytest.raises(RunError, match="wanted a trained SAE"):
        export(str(tmp_path / "nothing"), str(tmp_path / "new"), "saelens")
    assert not (tmp_path / "new").exists()


def _evaluation() -> EvalRecord:
    figures = {
        "fvu": 0.125,
        "mse": 2,
        "mse_per_element": 0.125,
        "l0": 5,
        "l1": 6,
        "l1_decoder": 6,
        "suppression": 0.75,
    }
    layers = tuple(
        LayerMetrics.model_validate({"site": site, "rows": 5461, **figures})
        for site in SITES
    )
    effect = ModelMetrics(
        site=SITES[0],
        tokens=9,
        ce_clean=2,
        ce_sae=2.1,
        ce_zero=3,
        ce_mean=2.9,
        recovered_zero=0.9,
        recovered_mean=0.91,
        kl=0.1,
    )
    return EvalRecord(
        run="r",
        store="gone",
        content_id="c0ffee",
        split="held_out",
        rows=16384,
        pooled=layers[0].model_copy(update={"site": "pooled"}),
        fvu_layer_mean=0.125,
        layers=layers,
        dead=1,
        dead_rows=16384,
        alive_share=0.9,
        model=(effect,),
    )
