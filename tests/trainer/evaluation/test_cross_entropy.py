"""CE and KL against full forwards with plain hooks, at every kind of site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import actstore
import trainer
from actstore.model.bridge import bridge_over_copy
from actstore.model.load_model import load_model, wrap_module
from actstore.store.store import Store
from schemas.records import ModelMetrics
from schemas.source import ModelSource
from schemas.train import TrainSpec
from tests.model.test_classes import module
from tests.model_types.small import small_model
from trainer.errors import TrainerWarning
from trainer.evaluation.cross_entropy_and_kl import held_out_tokens, model_metrics
from trainer.evaluation.patched_language_model import Subject
from trainer.evaluation.patched_passes import PatchedPasses, Tokens
from trainer.evaluation.skipped_modules import keeping_outputs, repeated, skipping
from trainer.runs.trained_sae import TrainedSae
from trainer.training.train_group import train_group

# Runs a model on tokens and a mask; replaces the values [b, t, d] of a site, if one is
# given, by what a function makes of them; returns the logits.
Run = Callable[[Tensor, Tensor, str | None, Callable[[Tensor], Tensor] | None], Tensor]

WIDTH_16 = (
    "hook_embed",
    "hook_pos_embed",
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_attn_out",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_resid_mid",
    "blocks.2.ln2.hook_normalized",
    "blocks.2.hook_mlp_out",
    "blocks.2.hook_resid_post",
    "blocks.5.hook_resid_pre",
    "blocks.5.hook_resid_post",
    "ln_final.hook_normalized",
)
WIDTH_64 = ("blocks.2.mlp.hook_pre", "blocks.2.mlp.hook_post")


@pytest.fixture(scope="module")
def of_mini(tmp_path_factory: pytest.TempPathFactory) -> Store:
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "tokens": 8_000,
        "context": 32,
        "sites": [*WIDTH_16, *WIDTH_64],
    }
    return actstore.harvest(spec, str(tmp_path_factory.mktemp("mini") / "store"))


def small_sae(store: Store, folder: Path, sites: tuple[str, ...]) -> TrainedSae:
    raw = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 4, "n_latents": 64},
        "rows": 64 * 10,
        "stream": {"batch": 64, "sites": list(sites), "rescale": "linear"},
    }
    train_group(store, {str(folder): TrainSpec.model_validate(raw)})
    return trainer.load(str(folder))


def by_plain_hooks(
    sae: TrainedSae, store: Store, site: str, run: Run, n_sequences: int
) -> dict[str, float]:
    """Each figure from a full forward of its own, sequence by sequence."""
    special = set(store.manifest.model.special_tokens)
    sums = dict.fromkeys(("clean", "sae", "zero", "mean", "kl"), 0.0)
    n = 0
    mean = torch.from_numpy(store.mean(site)).float()
    new: dict[str, Callable[[Tensor], Tensor]] = {
        "sae": lambda x: sae.reconstruct(x, site),
        "zero": lambda x: x * 0,
        "mean": lambda x: x * 0 + mean,
    }
    for row in held_out_tokens(store, n_sequences):
        tokens = torch.from_numpy(row)[None]
        is_token = tokens >= 0
        ordinary = is_token & torch.tensor([[int(t) not in special for t in row]])
        ids, mask = tokens.clamp_min(0), is_token.long()
        clean = run(ids, mask, None, None)[0].double().log_softmax(-1)
        found = {"clean": clean}
        for name, make in new.items():

            def replace(
                x: Tensor, make: Any = make, stays: Tensor = ordinary
            ) -> Tensor:
                return torch.where(stays[..., None], make(x), x)

            found[name] = run(ids, mask, site, replace)[0].double().log_softmax(-1)
        for i in range(len(row) - 1):
            if not ordinary[0, i] or row[i + 1] < 0:
                continue
            n += 1
            for name, log_p in found.items():
                sums[name] -= float(log_p[i, row[i + 1]])
            kl = clean[i].exp() * (clean[i] - found["sae"][i])
            sums["kl"] += float(kl.sum())
    return {"tokens": n, **{name: total / n for name, total in sums.items()}}


def check_alike(one: ModelMetrics, wanted: dict[str, float]) -> None:
    assert one.tokens == wanted["tokens"]
    figures = (one.ce_clean, one.ce_sae, one.ce_zero, one.ce_mean, one.kl)
    names = ("clean", "sae", "zero", "mean", "kl")
    assert figures == pytest.approx([wanted[name] for name in names], abs=2e-5)


@pytest.mark.parametrize("sites", [WIDTH_16, WIDTH_64])
def test_every_kind_of_hook(
    sites: tuple[str, ...], of_mini: Store, tmp_path: Path
) -> None:
    sae = small_sae(of_mini, tmp_path / "run", sites)
    model = load_model(ModelSource(name="builtin:mini")).module
    bridge = bridge_over_copy(model).bridge

    def run(ids: Tensor, _mask: Tensor, site: str | None, new: Any) -> Tensor:
        def hook(value: Tensor, hook: Any) -> Tensor:
            return new(value.flatten(2)).reshape(value.shape)

        hooks = [] if site is None else [(site, hook)]
        with torch.no_grad():
            return bridge.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)

    notes: list[str] = []
    found = model_metrics(sae, of_mini, n_sequences=3, tell=notes.append)
    assert notes == []
    for one in found:
        check_alike(one, by_plain_hooks(sae, of_mini, one.site, run, 3))
    # an ablation that changes nothing would be like any other
    changes = [abs(one.ce_zero - one.ce_clean) for one in found]
    assert min(changes) > 1e-4, changes


MODULES = {
    "gpt2": (
        "GPT2LMHeadModel",
        (
            "transformer.wte",
            "transformer.h.0",
            "transformer.h.1.mlp",
            "transformer.ln_f",
        ),
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        (
            "gpt_neox.embed_in",
            "gpt_neox.layers.0",
            "gpt_neox.layers.1.attention.dense",
            "gpt_neox.layers.1.mlp",
            "gpt_neox.layers.1",
            "gpt_neox.final_layer_norm",
        ),
    ),
    "llama": (
        "LlamaForCausalLM",
        (
            "model.embed_tokens",
            "model.layers.0",
            "model.layers.1.self_attn.o_proj",
            "model.layers.1.mlp",
            "model.norm",
        ),
    ),
}


@contextmanager
def replaced_output(model: nn.Module, site: str | None, new: Any) -> Iterator[None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (new(output[0]), *output[1:])
        return new(output)

    handles = []
    if site is not None:
        handles.append(model.get_submodule(site).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", list(MODULES))
@pytest.mark.parametrize("padded", [False, True])
def test_modules_of_other_models(kind: str, padded: bool, tmp_path: Path) -> None:
    name, sites = MODULES[kind]
    model = small_model(kind, name)
    model.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 97, (60, 12)).astype(np.int32)
    if padded:
        tokens[::2, 9:] = -1
    spec = {
        "model": str(tmp_path / "model"),
        "sites": list(sites),
        "tokens": tokens.size,
        "context": 12,
    }
    store = actstore.harvest(spec, str(tmp_path / "store"), tokens=tokens)
    sae = small_sae(store, tmp_path / "run", sites)

    def run(ids: Tensor, mask: Tensor, site: str | None, new: Any) -> Tensor:
        with torch.no_grad(), replaced_output(model, site, new):
            return model(ids, attention_mask=mask).logits

    notes: list[str] = []
    found = model_metrics(sae, store, n_sequences=5, tell=notes.append)
    assert notes == []
    assert len(found) == len(sites)
    for one in found:
        check_alike(one, by_plain_hooks(sae, store, one.site, run, 5))


def passes_of(model: nn.Module, site: str) -> tuple[PatchedPasses, Subject, list[str]]:
    notes: list[str] = []
    subject = Subject(wrap_module(model), [site])
    return PatchedPasses(subject, notes.append), subject, notes


def a_batch(n: int = 3) -> Tokens:
    ids = torch.randint(3, 97, (n, 8), generator=torch.Generator().manual_seed(n))
    return Tokens(ids, None, torch.zeros_like(ids, dtype=torch.bool))


def test_blocks_before_the_site_run_once() -> None:
    model = module("GPT2LMHeadModel")
    calls = [0, 0]
    for i in (0, 1):

        def count(*_: Any, i: int = i) -> None:
            calls[i] += 1

        model.transformer.h[i].mlp.register_forward_hook(count)
    site = "transformer.h.1.attn"
    passes, _, _ = passes_of(model, site)
    calls[:] = [0, 0]
    for _ in range(2):
        clean = passes.clean(a_batch(), [site])
        done = {output.module for output in clean.before[site]}
        assert model.transformer.h[0] in done
        assert model.transformer.h[0].mlp not in done  # its block stands for it
        assert model.transformer.h[1].ln_1 in done
        assert model.transformer.h[1] not in done
        passes.patched(clean, site, [torch.zeros_like, lambda x: x + 1])
    assert calls == [2, 4]  # untouched twice, and twice from the site on
    assert all("forward" not in vars(block) for block in model.transformer.h)


@pytest.mark.parametrize("stale", ["other values", "another shape"])
def test_a_way_around_the_blocks_is_found(stale: str) -> None:
    """Block 1 uses what block 0 has left beside its output: skipped, it leaves nothing."""
    model = module("GPT2LMHeadModel")
    left: list[Tensor] = []

    def leave(_m: Any, _i: Any, output: Tensor) -> None:
        part = output if stale == "another shape" else output.mean((0, 1))
        left.append(part)

    def use(_m: Any, _i: Any, output: Tensor) -> Tensor:
        used = left.pop() if left else 0 * output[0]
        return output + used

    site = "transformer.h.1.attn.c_proj"
    passes, subject, notes = passes_of(model, site)
    model.transformer.h[0].mlp.register_forward_hook(leave)
    model.transformer.h[1].mlp.register_forward_hook(use)
    for n in (3, 4):
        tokens = a_batch(n)
        clean = passes.clean(tokens, [site])
        zero, same = passes.patched(clean, site, [torch.zeros_like, lambda x: x])
        torch.testing.assert_close(same, clean.logits)
        wanted = subject.logits(tokens.ids, None, [(site, torch.zeros_like)])
        torch.testing.assert_close(zero, wanted)
    assert len(notes) == 1
    assert site in notes[0]
    assert "takes longer" in notes[0]


def test_an_error_in_a_pass_leaves_the_model_as_it_was() -> None:
    model = module("GPT2LMHeadModel")
    site = "transformer.h.1.mlp"
    passes, _, _ = passes_of(model, site)
    clean = passes.clean(a_batch(), [site])

    def fails(_: Tensor) -> Tensor:
        raise KeyError("a patch")

    with pytest.raises(KeyError, match="a patch"):
        passes.patched(clean, site, [fails])
    again = passes.clean(a_batch(), [site])
    torch.testing.assert_close(again.logits, clean.logits)
    assert all(not block._forward_hooks for block in model.transformer.h)


def test_a_module_that_is_called_twice() -> None:
    """What is known stands for its first calls only."""
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with keeping_outputs(layer) as outputs:
        first = layer(x)
    with skipping(outputs, torch.Size((1, 1)), 1):
        assert layer(x + 1).tolist() == first.tolist()
        again = layer(x + 1)
    torch.testing.assert_close(again, layer(x + 1))
    assert "forward" not in vars(layer)


def test_outputs_for_several_copies() -> None:
    shape = torch.Size((2, 3))
    rows = torch.arange(6.0)[:, None]
    by_sequence = torch.arange(2.0)
    other = torch.arange(5.0)
    value = (rows, [by_sequence, other, None], {"x": torch.tensor(1.0)})
    again = repeated(value, shape, 2)
    assert again[0].tolist() == [*rows.tolist(), *rows.tolist()]
    assert again[1][0].tolist() == [0, 1, 0, 1]
    assert again[1][1] is other
    assert again[1][2] is None
    assert again[2]["x"].item() == 1.0


def test_a_note_becomes_a_warning(of_mini: Store, tmp_path: Path) -> None:
    sae = small_sae(of_mini, tmp_path / "run", WIDTH_16[:1])
    model = load_model(of_mini.manifest.spec.model)
    subject = Subject(model, sae.sites)
    n = 0

    def noise(*inputs: Any) -> Tensor:
        nonlocal n
        n += 1
        return inputs[2] + n

    subject.running.lm_head.register_forward_hook(noise)
    with pytest.warns(TrainerWarning, match="takes longer"):
        model_metrics(sae, of_mini, n_sequences=1, subject=subject)
