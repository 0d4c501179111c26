"""Foreign folders become runs: SAELens' and dictionary_learning's conventions, each
against its own formula.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import trainer
from actstore.errors import SpecError
from actstore.store.store import Store
from tests.support import make_store
from tests.trainer.exchange import (
    SITES,
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
from trainer.errors import ExchangeError, RunError, TrainerError
from trainer.evaluation.metrics_of_rows import evaluate_rows
from trainer.exports.export import export
from trainer.imports.import_sae import import_sae, read_folder

FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", n_units=24)


def saelens(at: Path, tensors: dict[str, Tensor], **config: Any) -> str:
    """A SAELens folder of today's layout; keys given override it."""
    at.mkdir()
    base = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": M,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {
            "sae_lens_version": "6.40.0",
            "hook_name": SITES[1],
            "model_name": "gpt2-small",
        },
    }
    (at / "cfg.json").write_text(json.dumps(base | config))
    save_file(tensors, at / "sae_weights.safetensors")
    return str(at)


def dictionary_learning(at: Path, name: str, state: dict[str, Tensor]) -> str:
    at.mkdir()
    trainer_config = {
        "dict_class": name,
        "layer": 1,
        "lm_name": "EleutherAI/pythia-70m",
        "k": 5,
    }
    (at / "config.json").write_text(
        json.dumps({"trainer": trainer_config, "buffer": {"ctx_len": 128}})
    )
    torch.save(OrderedDict(state), at / "ae.pt")
    return str(at)


@pytest.mark.parametrize(
    "spec", [{"kind": "relu_l1", "tied": True}, {"kind": "topk", "k": 5}]
)
def test_an_export_comes_back_and_evaluates_the_same(
    tmp_path: Path, store: Store, spec: dict[str, Any]
) -> None:
    run = make_run(str(tmp_path / "run"), spec, store)
    export(run, str(tmp_path / "out"), "saelens")
    back = str(tmp_path / "back")
    made = CliRunner().invoke(
        app,
        [
            "import",
            str(tmp_path / "out" / SITES[1]),
            "--out",
            back,
            "--store",
            store.url,
        ],
    )
    assert made.exit_code == 0, made.output
    assert made.output == f"run: {back} ({spec['kind']}, {M} latents, {SITES[1]})\n"
    layer = evaluate_rows(trainer.load(run), store)[0].layers[1]
    again = evaluate_rows(trainer.load(back), store)[0].pooled
    for name in ("fvu", "mse", "l0", "suppression"):
        assert getattr(again, name) == pytest.approx(getattr(layer, name), rel=1e-5), (
            name
        )
    done = CliRunner().invoke(app, ["eval", back, "--json"])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "back" / "imported.json").read_text())
    assert (
        about["config"]["metadata"]["actstore_content_id"] == store.manifest.content_id
    )


def test_without_a_store_eval_asks_for_one(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "sae", random_state(*FOUR))
    made = import_sae(folder, str(tmp_path / "run"), site="elsewhere")
    assert made.record.sites == ("elsewhere",)
    assert "center_writing_weights" in made.notes[0]
    failed = CliRunner().invoke(app, ["eval", str(tmp_path / "run")])
    assert isinstance(failed.exception, TrainerError)
    assert "say which one with --store" in str(failed.exception)
    with pytest.raises(RunError, match="not empty"):
        import_sae(folder, str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("config", "k", "subtract", "normed"),
    [
        ({}, None, True, False),
        ({"apply_b_dec_to_input": False}, None, False, False),
        ({"architecture": "topk", "k": 5}, 5, True, False),
        ({"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}, 5, True, True),
        ({"architecture": "topk", "k": 5, "apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True}, 5, False, True),
    ],
)  # fmt: skip
def test_saelens_conventions(
    tmp_path: Path, config: dict[str, Any], k: int | None, subtract: bool, normed: bool
) -> None:
    state, x = random_state(*FOUR), rows()
    import_sae(saelens(tmp_path / "sae", state, **config), str(tmp_path / "run"))
    sae = trainer.load(str(tmp_path / "run"))
    latents = encode(
        config.get("architecture", "standard"), state, x, k, subtract, normed
    )
    assert gap(sae.encode(x, SITES[1]), latents) < 1e-5
    inner = latents / state["W_dec"].double().norm(dim=1) if normed else latents
    assert (
        gap(sae.decode(sae.encode(x, SITES[1]), SITES[1]), decode(state, inner)) < 1e-5
    )


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    ("architecture", "names"),
    [("jumprelu", ("b_enc", "threshold")), ("gated", ("b_gate", "b_mag", "r_mag"))],
)
def test_the_other_architectures_are_read(
    tmp_path: Path, architecture: str, names: tuple[str, ...], subtract: bool
) -> None:
    state, x = random_state("W_enc", "W_dec", "b_dec", *names), rows()
    if "threshold" in state:
        state["threshold"][:4] = torch.tensor([0.0, 0.0, -1.0, -2.0])
    folder = saelens(
        tmp_path / "sae",
        state,
        architecture=architecture,
        apply_b_dec_to_input=subtract,
    )
    found = read_folder(folder).plain
    latents = encode(architecture, state, x, subtract=subtract)
    assert gap(encode(architecture, found.tensors, x), latents) < 1e-12
    import_sae(folder, str(tmp_path / "run"))
    sae = trainer.load(str(tmp_path / "run"))
    assert gap(sae.encode(x, SITES[1]), latents) < 1e-5
    assert (
        gap(sae.decode(sae.encode(x, SITES[1]), SITES[1]), decode(state, latents))
        < 1e-5
    )


@pytest.mark.parametrize("config", [{}, {"apply_b_dec_to_input": False}])
def test_transcoders_say_where_their_output_is(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = saelens(
        tmp_path / "sae",
        random_state(*FOUR, d_out=11),
        architecture="transcoder",
        **config,
    )
    with pytest.raises(
        ExchangeError, match=r"hook_name_out.*apply_b_dec_to_input: false"
    ):
        import_sae(folder, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_input_scaled_to_mean_norm(tmp_path: Path, store: Store) -> None:
    state = random_state(*FOUR)
    folder = saelens(
        tmp_path / "sae", state, normalize_activations="expected_average_only_in"
    )
    with pytest.raises(
        ExchangeError, match=r"scaled to mean norm sqrt\(d\).*scale, or store"
    ):
        import_sae(folder, str(tmp_path / "run"))
    import_sae(folder, str(tmp_path / "given"), scale=0.25)
    import_sae(folder, str(tmp_path / "measured"), store=store)
    x = torch.from_numpy(store.read(SITES[1], store.rows("train")))
    factor = D**0.5 / float(x.double().norm(dim=1).mean())
    for name, scale in (("given", 0.25), ("measured", factor)):
        sae = trainer.load(str(tmp_path / name))
        latents = encode("standard", state, x.double() * scale)
        assert gap(sae.encode(x, SITES[1]), latents) < 1e-5
        assert (
            gap(
                sae.decode(sae.encode(x, SITES[1]), SITES[1]),
                decode(state, latents) / scale,
            )
            < 1e-5
        )
    with pytest.raises(SpecError, match="scale: wanted a number above 0"):
        import_sae(folder, str(tmp_path / "run"), scale=0.0)
    plain = saelens(tmp_path / "plain", state)
    with pytest.raises(ExchangeError, match="its input is not scaled"):
        import_sae(plain, str(tmp_path / "run"), scale=2.0)


def test_configs_before_version_6_are_flat(tmp_path: Path) -> None:
    state, x = random_state(*FOUR) | {"scaling_factor": torch.ones(M)}, rows()
    folder = saelens(tmp_path / "sae", state)
    old = {
        "d_in": D,
        "d_sae": M,
        "hook_point": SITES[2],
        "model_name": "gpt2-small",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "normalize_activations": False,
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
    }
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(old))
    record = import_sae(folder, str(tmp_path / "run")).record
    assert (record.sites, record.model, record.sae.kind) == (
        (SITES[2],),
        "gpt2-small",
        "topk",
    )
    assert (
        gap(
            trainer.load(str(tmp_path / "run")).encode(x, 0),
            encode("topk", state, x, 5),
        )
        < 1e-5
    )


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"architecture": "temporal"},
            "its architecture is temporal; what can be read is standard, topk",
        ),
        (
            {"normalize_activations": "layer_norm"},
            "each row by its own mean and deviation",
        ),
        (
            {"normalize_activations": "constant_norm_rescale"},
            "each row by its own norm",
        ),
        ({"normalize_activations": "covariance_whitening"}, "with a matrix"),
        ({"normalize_activations": "odd"}, "not known"),
        ({"activation_fn_str": "tanh-relu"}, "its activation function is tanh-relu"),
        ({"metadata": {"hook_head_index": 3}}, "of head 3 alone"),
        ({"d_in": 99}, "says d_in 99"),
        ({"architecture": "topk"}, "wanted a k from 1 to 40, got None"),
        (
            {"architecture": "gated"},
            "b_gate, b_mag, r_mag is missing; b_enc is there besides",
        ),
        ({"metadata": {}}, "does not say which site"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, config: dict[str, Any], text: str
) -> None:
    folder = saelens(tmp_path / "sae", random_state(*FOUR), **config)
    with pytest.raises(ExchangeError, match=text):
        import_sae(folder, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_damaged_and_foreign_folders(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state(*FOUR)
    tuned = saelens(
        tmp_path / "tuned", state | {"scaling_factor": torch.full((M,), 2.0)}
    )
    with pytest.raises(ExchangeError, match="fine-tuned"):
        read_folder(tuned)
    cut = saelens(tmp_path / "cut", state)
    (tmp_path / "cut" / "sae_weights.safetensors").write_bytes(b"no")
    with pytest.raises(ExchangeError, match="not a safetensors file"):
        read_folder(cut)
    (tmp_path / "cut" / "cfg.json").write_text("{")
    with pytest.raises(ExchangeError, match="not valid JSON"):
        read_folder(cut)
    with pytest.raises(ExchangeError, match="wanted a folder of SAELens"):
        read_folder(str(tmp_path / "nothing"))
    good = saelens(tmp_path / "good", state)
    with pytest.raises(
        ExchangeError, match=r"it has no site other; give site, one of blocks\.0"
    ):
        import_sae(good, str(tmp_path / "run"), "other", store)
    wide = saelens(tmp_path / "wide", random_state(*FOUR, d=24), d_in=24)
    with pytest.raises(ExchangeError, match=r"this SAE is of d 24, but .* is of 16"):
        import_sae(wide, str(tmp_path / "run"), None, store)
    monkeypatch.setattr(
        sys.modules[import_sae.__module__], "kind_importing", lambda _: None
    )
    with pytest.raises(ExchangeError, match="no SAE that computes a standard one"):
        import_sae(good, str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE",
                                  "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder"])  # fmt: skip
def test_dictionary_learning_classes(tmp_path: Path, name: str) -> None:
    """Written as those classes keep their parameters, compared with what those classes
    compute.
    """
    x, norms = rows(), None
    names = (
        ("b_gate", "b_mag", "r_mag")
        if name == "GatedAutoEncoder"
        else ("b_enc", "threshold")
    )
    t = random_state("W_enc", "W_dec", "b_dec", *names)
    linear = {
        "encoder.weight": t["W_enc"].T.contiguous(),
        "decoder.weight": t["W_dec"].T.contiguous(),
    }
    four, one = {n: t[n] for n in FOUR if n in t}, torch.tensor(0.7)
    k, groups = torch.tensor(5, dtype=torch.int32), torch.tensor([10, 30])
    architecture, subtract = "standard", True
    if name == "AutoEncoder":
        state = linear | {"bias": t["b_dec"], "encoder.bias": t["b_enc"]}
    elif name == "AutoEncoderNew":
        state, subtract = (
            linear | {"decoder.bias": t["b_dec"], "encoder.bias": t["b_enc"]},
            False,
        )
    elif name == "AutoEncoderTopK":
        state, architecture = (
            linear
            | {
                "b_dec": t["b_dec"],
                "encoder.bias": t["b_enc"],
                "k": k,
                "threshold": one,
            },
            "topk",
        )
    elif name == "BatchTopKSAE":
        state, architecture = (
            linear
            | {
                "b_dec": t["b_dec"],
                "encoder.bias": t["b_enc"],
                "k": k,
                "threshold": one,
            },
            "jumprelu",
        )
        t["threshold"] = one
    elif name == "MatryoshkaBatchTopKSAE":
        state, architecture = (
            four | {"k": k, "threshold": one, "group_sizes": groups},
            "jumprelu",
        )
        t["threshold"] = one
    elif name == "JumpReluAutoEncoder":
        state, architecture, subtract = (
            four | {"threshold": t["threshold"]},
            "jumprelu",
            False,
        )
        norms = t["W_dec"].double().norm(dim=1)
    else:
        biases = {
            "decoder_bias": t["b_dec"],
            "gate_bias": t["b_gate"],
            "mag_bias": t["b_mag"],
            "r_mag": t["r_mag"],
        }
        state, architecture = linear | biases, "gated"
        norms = t["W_dec"].double().norm(dim=1)
    foreign = read_folder(dictionary_learning(tmp_path / "ae", name, state))
    assert (foreign.site, foreign.model, foreign.plain.architecture) == (
        None,
        "EleutherAI/pythia-70m",
        architecture,
    )
    latents = encode(architecture, t, x, 5, subtract)
    found = encode(architecture, foreign.plain.tensors, x, foreign.plain.k)
    assert gap(found, latents if norms is None else latents * norms) < 1e-12
    assert gap(decode(foreign.plain.tensors, found), decode(t, latents)) < 1e-12
    (tmp_path / "ae" / "ae.pt").unlink()
    save_file(state, tmp_path / "ae" / "ae.safetensors")
    again = read_folder(str(tmp_path / "ae"))
    assert all(
        torch.equal(again.plain.tensors[n], v) for n, v in foreign.plain.tensors.items()
    )
    if architecture in {"standard", "topk"}:
        import_sae(str(tmp_path / "ae"), str(tmp_path / "run"), SITES[0])
        assert gap(trainer.load(str(tmp_path / "run")).encode(x, 0), latents) < 1e-5


class Bomb:
    """What a hostile pickle does: it touches a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_that_would_run_code_are_refused(tmp_path: Path) -> None:
    folder = dictionary_learning(tmp_path / "ae", "AutoEncoder", {})
    torch.save({"bias": Bomb(tmp_path / "touched")}, tmp_path / "ae" / "ae.pt")
    with pytest.raises(ExchangeError, match=r"would run code.*ae\.safetensors"):
        read_folder(folder)
    (tmp_path / "ae" / "ae.pt").write_bytes(b"no zip")
    with pytest.raises(ExchangeError, match="damaged or would run code"):
        read_folder(folder)
    torch.save([torch.ones(2)], tmp_path / "ae" / "ae.pt")
    with pytest.raises(ExchangeError, match="wanted a state dict of tensors, got list"):
        read_folder(folder)
    assert not (tmp_path / "touched").exists()
    (tmp_path / "ae" / "config.json").unlink()
    with pytest.raises(
        ExchangeError, match=r"ae\.pt is a pickle, which can run any code"
    ):
        read_folder(folder)


def test_unknown_classes_of_dictionary_learning(tmp_path: Path) -> None:
    with pytest.raises(
        ExchangeError, match="its class is CrossCoder; what can be read is AutoEncoder,"
    ):
        read_folder(dictionary_learning(tmp_path / "a", "CrossCoder", {}))
    folder = dictionary_learning(tmp_path / "b", "AutoEncoder", {})
    (tmp_path / "b" / "config.json").write_text("{}")
    with pytest.raises(ExchangeError, match=r"with trainer\.dict_class"):
        read_folder(folder)
    with pytest.raises(ExchangeError, match=r"W_enc.* is missing"):
        read_folder(
            dictionary_learning(tmp_path / "c", "AutoEncoder", {"bias": torch.zeros(3)})
        )
