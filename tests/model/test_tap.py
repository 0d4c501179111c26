"""The tap gives TransformerLens' own values, for every kind of site, from the unwrapped
model where possible.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module

from actstore.errors import ModelError, SiteError
from actstore.model.load_model import LoadedModel, load_model, wrap_module
from actstore.model.model_folder import BUILTIN
from actstore.model.open_tap import open_tap
from actstore.model.tap import HookTap
from schemas.source import ModelSource

COMMON = {"vocab_size": 97, "max_position_embeddings": 64}
HEADS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
PRE = (
    "blocks.*.hook_resid_pre",
    "blocks.*.hook_resid_post",
    "blocks.*.hook_mlp_out",
    "blocks.*.hook_attn_out",
)
INSIDE = ("blocks.*.attn.hook_{q,k,v,z}", "blocks.*.mlp.hook_{in,post}")
EVERY = (*PRE, *INSIDE, "blocks.*.hook_resid_mid", "blocks.*.hook_mlp_in")


def gpt2(**changes: Any) -> Any:
    shape = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "vocab_size": 97,
        "n_positions": 64,
    }
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**shape, **changes}))


def neox(parallel: bool = True) -> Any:
    config = transformers.GPTNeoXConfig(
        **COMMON, **HEADS, use_parallel_residual=parallel
    )
    return transformers.GPTNeoXForCausalLM(config)


def llama() -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**COMMON, **HEADS, num_key_value_heads=2)
    )


def gemma2() -> Any:
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **COMMON, **HEADS, num_key_value_heads=2, head_dim=8, sliding_window=8
        )
    )


def gemma3() -> Any:
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **COMMON, **HEADS, num_key_value_heads=2, head_dim=8, sliding_window=8
        )
    )


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**COMMON, **HEADS))


CASES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "gpt2": (gpt2, EVERY),
    "neox": (neox, (*PRE, *INSIDE)),
    "neox_sequential": (lambda: neox(parallel=False), (*PRE, *INSIDE)),
    "llama": (llama, EVERY),
    "gemma2": (gemma2, EVERY),
    "gemma3": (gemma3, EVERY),
    "bert": (bert, (*PRE, *INSIDE)),
}


def loaded(module: Any) -> LoadedModel:
    torch.manual_seed(1)
    # the default initialisation hides what norms and biases do
    for p in module.parameters():
        nn.init.normal_(p, std=0.2)
    return wrap_module(module)


def values(
    tap: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    got: dict[str, torch.Tensor] = {}
    tap.run(tokens, mask, lambda i, x: got.__setitem__(tap.sites[i].name, x.clone()))
    return got


def reference(
    model: LoadedModel, tokens: torch.Tensor, *, mlp_in: bool = False
) -> dict[str, torch.Tensor]:
    """TransformerLens' run_with_cache on a bridge of its own."""
    import copy

    module = copy.deepcopy(model.module)
    module.set_attn_implementation("eager")
    bridge = build_bridge_from_module(
        module, type(module).__name__, hf_config=module.config
    )
    bridge.set_use_hook_mlp_in(mlp_in)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
    return {name: cache[name] for name in bridge.hook_dict if name in cache}


def runs_plain(tap: Any) -> bool:
    return "forward_of" in tap._call.__qualname__


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_run_with_cache(case: str) -> None:
    make, patterns = CASES[case]
    model = loaded(make())
    tokens = torch.randint(0, 97, (3, 17))
    wanted = reference(model, tokens, mlp_in="blocks.*.hook_mlp_in" in patterns)
    tap = open_tap(model, patterns)
    assert runs_plain(tap), (
        "every one of these sites has its place in the unwrapped model"
    )
    got = values(tap, tokens)
    assert set(got) == {site.name for site in tap.sites}
    for site in tap.sites:
        exact = wanted[site.name].flatten(2)
        assert got[site.name].shape == (3, 17, site.d)
        torch.testing.assert_close(
            got[site.name], exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max())
        )


def test_half_precision_models_are_resolved_too() -> None:
    model = loaded(gpt2().bfloat16())
    tap = open_tap(model, ("blocks.*.hook_{resid_mid,mlp_out}", "blocks.*.attn.hook_q"))
    assert runs_plain(tap)
    assert all(
        x.dtype == torch.bfloat16
        for x in values(tap, torch.randint(0, 97, (2, 9))).values()
    )


def test_sites_inside_the_bridge_only_go_through_it() -> None:
    model = loaded(gpt2())
    tokens = torch.randint(0, 97, (2, 9))
    tap = open_tap(model, ("blocks.1.attn.hook_result", "blocks.0.hook_mlp_out"))
    assert not runs_plain(tap)
    got = values(tap, tokens)
    assert got["blocks.1.attn.hook_result"].shape == (2, 9, 4 * 32)
    wanted = reference(model, tokens)["blocks.0.hook_mlp_out"]
    torch.testing.assert_close(
        got["blocks.0.hook_mlp_out"], wanted, rtol=1e-3, atol=1e-5
    )


def test_order_of_sites_is_that_of_the_patterns_then_of_the_layers() -> None:
    tap = open_tap(
        loaded(gpt2(n_layer=11)),
        ("blocks.{9..10}.hook_mlp_out", "blocks.*.hook_resid_pre"),
    )
    names = [site.name for site in tap.sites]
    assert names == ["blocks.9.hook_mlp_out", "blocks.10.hook_mlp_out"] + [
        f"blocks.{i}.hook_resid_pre" for i in range(11)
    ]


def test_the_forward_stops_after_the_last_site_and_computes_no_logits() -> None:
    model = loaded(gpt2(n_layer=4))
    ran: list[str] = []
    for name, module in model.module.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    tap = open_tap(model, ("blocks.{0,1}.hook_mlp_out",))
    ran.clear()
    values(tap, torch.randint(0, 97, (1, 5)))
    assert "transformer.h.1.mlp.c_proj" in ran
    assert not any(
        name.startswith(("transformer.h.2", "transformer.ln_f", "lm_head"))
        for name in ran
    )
    whole = open_tap(model, ("blocks.3.hook_resid_post",))
    ran.clear()
    values(whole, torch.randint(0, 97, (1, 5)))
    assert "lm_head" not in ran


def test_the_attention_mask_is_honoured() -> None:
    model = loaded(bert())
    tap = open_tap(model, ("blocks.1.hook_mlp_out",))
    tokens = torch.randint(0, 97, (1, 6))
    padded = torch.cat([tokens, torch.zeros(1, 4, dtype=torch.int64)], dim=1)
    mask = (torch.arange(10) < 6).long()[None]
    short, long = (
        values(tap, t, m)["blocks.1.hook_mlp_out"]
        for t, m in ((tokens, None), (padded, mask))
    )
    torch.testing.assert_close(long[:, :6], short, rtol=1e-4, atol=1e-5)


def test_closing_leaves_the_model_as_it_was() -> None:
    model = loaded(gpt2())
    before = {name: p.clone() for name, p in model.module.state_dict().items()}
    attention = model.module.config._attn_implementation
    tap = open_tap(model, EVERY)
    values(tap, torch.randint(0, 97, (1, 5)))
    tap.close()
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in model.module.modules()
    )
    assert model.module.config._attn_implementation == attention
    assert all(
        torch.equal(p, before[name]) for name, p in model.module.state_dict().items()
    )


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("blocks.0.hook_mlp_uot", "blocks.0.hook_mlp_out"),
        ("blocks.*.hook_nothing", "no site matches"),
        ("blocks.9.hook_mlp_out", "blocks.0.hook_mlp_out"),
        ("blocks.0.attn.hook_pattern", "not one vector per token"),
        ("blocks.0.attn.hook_attn_scores", "not one vector per token"),
        ("blocks.{}.hook_mlp_out", "is empty"),
    ],
)
def test_sites_that_cannot_be_are_refused(site: str, says: str) -> None:
    with pytest.raises(SiteError, match="site") as caught:
        open_tap(loaded(gpt2()), (site,))
    assert says in str(caught.value)


def test_plain_modules_have_their_submodules_as_sites() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 6)
            self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.embed(tokens)
            for layer in self.layers:
                x = x + layer(x)
            return x

    module = Plain()
    tap = open_tap(wrap_module(module), ("layers.*",))
    assert isinstance(tap, HookTap)
    tokens = torch.randint(0, 2, (2, 5))
    x = module.embed(tokens)
    torch.testing.assert_close(
        values(tap, tokens)["layers.0"], module.layers[0](x).detach()
    )
    with pytest.raises(SiteError, match=r"layers\.1"):
        open_tap(wrap_module(module), ("layers.11",))


def test_a_bridge_in_memory_is_tapped_as_it_is() -> None:
    module = loaded(gpt2()).module
    tokens = torch.randint(0, 97, (2, 9))
    wanted = reference(wrap_module(module), tokens)["blocks.1.hook_mlp_out"]
    bridge = build_bridge_from_module(
        module, "GPT2LMHeadModel", hf_config=module.config
    )
    got = values(open_tap(wrap_module(bridge), ("blocks.1.hook_mlp_out",)), tokens)[
        "blocks.1.hook_mlp_out"
    ]
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_models_by_name() -> None:
    model = load_model(ModelSource(name="builtin:mini"))
    assert model.info.architecture == "GPT2LMHeadModel"
    assert (model.info.n_layers, model.info.d_model, model.info.vocabulary) == (
        6,
        16,
        4096,
    )
    assert model.tokenizer is not None
    assert (
        model.info.weights_digest
        == load_model(ModelSource(name="builtin:mini")).info.weights_digest
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("builtin:huge", "builtin:mini, builtin:tiny"),
        ("/no/such/folder", "there is no such folder"),
        ("{empty}", "no config.json"),
        ("{strange}", "NoSuchModel"),
        ("{broken}", "no model.safetensors"),
    ],
)
def test_models_that_cannot_be_loaded_are_named(
    name: str, says: str, tmp_path: Any
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["NoSuchModel"]}'
    )
    shutil.copy(BUILTIN / "mini" / "model.safetensors", tmp_path / "strange")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    )
    where = name.format(
        **{one: tmp_path / one for one in ("empty", "strange", "broken")}
    )
    with pytest.raises(ModelError) as caught:
        load_model(ModelSource(name=where))
    assert says in str(caught.value)
