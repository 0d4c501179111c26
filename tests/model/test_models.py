"""Checkpoints that do not fit, damaged files, custom code and packages that are not
here: named, never run or guessed.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

import actstore
from actstore.errors import HarvestWarning, ModelError, SpecError
from actstore.harvesting.estimate import estimate
from actstore.harvesting.extend import extend
from actstore.harvesting.harvest import harvest
from actstore.model.load_model import load_model
from actstore.model.loaded_weights import check_used, check_whole
from actstore.model.model_folder import BUILTIN
from actstore.model.open_tap import open_tap
from actstore.store.store import Store
from actstore.store.tokenizer_files import stored_tokenizer
from schemas.source import ModelSource, Site
from tests.model.checkpoints import (
    State,
    gpt2,
    rewrite,
    same,
    saved,
    with_own_code,
)

HEADS: dict[str, Any] = {
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
}
SIZES: dict[str, Any] = {**HEADS, "vocab_size": 50, "max_position_embeddings": 32}
TOKENS = np.random.default_rng(0).integers(0, 50, (8, 16))
FIRST, LAST = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134515080\n"
)


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def without(part: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if part not in key}


def with_more(more: State) -> Callable[[State], State]:
    return lambda state: {**state, **more}


def spec(folder: Path, *sites: str, **model: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(folder), **model},
        "sites": sites or (LAST,),
        "batch": 4,
        "unit_sequences": 4,
    }


def harvested(folder: Path, out: Path, *sites: str, **model: Any) -> Store:
    return actstore.harvest(spec(folder, *sites, **model), str(out), tokens=TOKENS)


def refused(folder: Path, out: Path, *sites: str, **model: Any) -> str:
    """What a harvest says that does not begin."""
    with pytest.raises(ModelError) as caught:
        harvested(folder, out, *sites, **model)
    assert not out.exists()
    return str(caught.value)


def objects(store: Store) -> dict[str, bytes]:
    return {key: store.storage.read(key) for key in store.storage.list()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net."])
@pytest.mark.parametrize("kind", [transformers.GPT2LMHeadModel, transformers.GPT2Model])
def test_a_prefix_is_named_with_what_to_do(
    prefix: str, kind: Any, tmp_path: Path
) -> None:
    folder = saved(
        gpt2(kind),
        tmp_path / "model",
        prefixed(prefix),
        architectures=["GPT2LMHeadModel"],
    )
    says = refused(folder, tmp_path / "out", FIRST)
    # two embeddings (one twice, tied) and layer 0
    assert "lacks 15 weights that the sites depend on" in says
    assert "transformer.h.0.attn.c_attn.bias" in says
    assert f"take `{prefix}` out of every key" in says
    with pytest.raises(ModelError, match=r"transformer.h.0.attn.c_attn.bias"):
        estimate(spec(folder, FIRST), tokens=TOKENS)


@pytest.mark.parametrize(
    ("edit", "config"),
    [(without(".h.1."), {}), (same, {"n_layer": 3})],
    ids=["layer missing", "layer too many"],
)
def test_layers_that_are_not_in_the_file(
    edit: Callable[[State], State], config: dict[str, Any], tmp_path: Path
) -> None:
    """Refused by name at the sites they reach, and not before; what is harvested before
    them is the model's own.
    """
    layer = config.get("n_layer", 2) - 1
    folder = saved(gpt2(), tmp_path / "model", edit, **config)
    says = refused(folder, tmp_path / "out", f"blocks.{layer}.hook_mlp_out")
    assert f"transformer.h.{layer}.attn.c_attn.bias" in says
    assert "and 8 more" in says
    with pytest.warns(
        HarvestWarning,
        match=rf"lacks transformer.h.{layer}.attn.c_attn.bias, .* no site depends on",
    ):
        got = harvested(folder, tmp_path / "out", FIRST)
    whole = harvested(saved(gpt2(), tmp_path / "whole"), tmp_path / "right", FIRST)
    assert np.array_equal(got.read(FIRST), whole.read(FIRST))
    with pytest.warns(HarvestWarning):
        # other random numbers in the layer that is missing
        again = harvested(folder, tmp_path / "again", FIRST)
    assert objects(again) == objects(got)


def test_only_what_runs_before_the_site_is_needed(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "model", without("h.1.mlp.c_fc.weight"))
    assert "lacks 1 weight " in refused(folder, tmp_path / "out", LAST)
    for site in (
        "blocks.1.hook_resid_pre",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_attn_out",
    ):
        with pytest.warns(
            HarvestWarning, match="lacks transformer.h.1.mlp.c_fc.weight"
        ):
            harvested(folder, tmp_path / site, site)


def test_a_site_of_the_bridge_alone_is_watched_too(tmp_path: Path) -> None:
    """Per-head results run a copy of the model that TransformerLens has taken apart."""
    folder = saved(gpt2(), tmp_path / "model", without("h.1.attn.c_attn.weight"))
    site = "blocks.1.attn.hook_result"
    assert "transformer.h.1.attn.c_attn.weight" in refused(
        folder, tmp_path / "out", site
    )
    with pytest.warns(HarvestWarning, match="no site depends on"):
        harvested(folder, tmp_path / "out", "blocks.0.attn.hook_result")


def test_compiled_forwards_are_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's own front end and an eager back end: no C++ compiler is
    needed.
    """
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: compiled(call, backend="eager"))
    model = load_model(
        ModelSource(
            name=str(
                saved(gpt2(), tmp_path / "model", without("h.1.mlp.c_proj.weight"))
            )
        )
    )
    tap = open_tap(model, (LAST,), compiled=True)
    with pytest.raises(ModelError, match=r"transformer.h.1.mlp.c_proj.weight"):
        check_used(model, tap)
    tap.close()


@pytest.mark.parametrize("kind", [transformers.GPT2LMHeadModel, transformers.GPT2Model])
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "GPT2Model"])
def test_a_weight_that_a_module_has_no_place_for(
    kind: Any, architecture: str, tmp_path: Path
) -> None:
    """Whatever prefix the base model has in the file and in the class."""
    body = "transformer.h" if kind is transformers.GPT2LMHeadModel else "h"
    key = f"{body}.1.attn.c_attn.extra_bias"
    folder = saved(
        gpt2(kind),
        tmp_path / "m",
        with_more({key: torch.ones(3)}),
        architectures=[architecture],
    )
    model = load_model(ModelSource(name=str(folder)))
    tap = Watched(
        model.module, f"{'transformer.' if architecture != 'GPT2Model' else ''}h.1.mlp"
    )
    with pytest.raises(
        ModelError, match=f"has 1 weight of modules that are run.*{key}"
    ):
        check_used(model, tap)
    tap = Watched(
        model.module, f"{'transformer.' if architecture != 'GPT2Model' else ''}h.0.mlp"
    )
    with pytest.warns(HarvestWarning, match=f"it has {key}"):
        check_used(model, tap)
    with pytest.raises(ModelError, match=key):
        check_whole(model)


class Watched:
    """A tap at one module's output, for models that TransformerLens has no adapter for."""

    sites: tuple[Site, ...] = ()

    def __init__(self, module: Any, name: str) -> None:
        self._module, self._at = module, module.get_submodule(name)

    def run(self, tokens: torch.Tensor, mask: Any, sink: Any) -> None:
        class StopError(Exception):
            pass

        def stop(*_: Any) -> None:
            raise StopError

        handle = self._at.register_forward_hook(stop)
        try:
            with pytest.raises(StopError), torch.inference_mode():
                self._module(tokens)
        finally:
            handle.remove()

    def check_padding(self, tokens: NDArray[np.int32]) -> None:
        pass

    def close(self) -> None:
        pass


def test_an_option_that_the_config_misses(tmp_path: Path) -> None:
    """Biases of a Llama with attention_bias, and q_norm of a Qwen3, are weights left
    out.
    """
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, attention_bias=True)
    )
    says = refused(
        saved(llama, tmp_path / "llama", attention_bias=False), tmp_path / "out", FIRST
    )
    assert "model.layers.0.self_attn.k_proj.bias" in says
    assert "attention_bias" in says
    qwen = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SIZES, head_dim=8, num_key_value_heads=2)
    )
    folder = saved(
        qwen, tmp_path / "qwen", architectures=["LlamaForCausalLM"], model_type="llama"
    )
    assert "model.layers.0.self_attn.k_norm.weight" in refused(
        folder, tmp_path / "out", FIRST
    )


def test_keys_that_do_not_matter_are_noted(tmp_path: Path) -> None:
    """A layer more than the config has, a pooler, a head of another task; masks that
    older versions kept.
    """
    whole = harvested(saved(gpt2(), tmp_path / "whole"), tmp_path / "right", FIRST)
    with pytest.warns(
        HarvestWarning,
        match="it has transformer.h.1.attn.c_attn.weight, .* and .* more, which the model",
    ):
        got = harvested(
            saved(gpt2(), tmp_path / "short", n_layer=1), tmp_path / "short-out", FIRST
        )
    assert np.array_equal(got.read(FIRST), whole.read(FIRST))
    mask = {
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "classifier.weight": torch.ones(2, 16),
    }
    with pytest.warns(
        HarvestWarning,
        match="it has classifier.weight, transformer.h.0.attn.masked_bias, which",
    ):
        got = harvested(
            saved(gpt2(), tmp_path / "masks", with_more(mask)),
            tmp_path / "masks-out",
            FIRST,
        )
    assert np.array_equal(got.read(FIRST), whole.read(FIRST))


def test_an_old_gpt_neo_with_causal_masks(tmp_path: Path) -> None:
    config = transformers.GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], vocab_size=50,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    mask = {
        "transformer.h.0.attn.attention.bias": torch.ones(
            1, 1, 32, 32, dtype=torch.uint8
        ).tril()
    }
    folder = saved(
        transformers.GPTNeoForCausalLM(config), tmp_path / "model", with_more(mask)
    )
    with pytest.warns(HarvestWarning, match="transformer.h.0.attn.attention.bias"):
        harvested(folder, tmp_path / "out", LAST)


def bert(kind: Any, folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    return saved(kind(transformers.BertConfig(**SIZES)), folder, **config)


def t5(kind: Any, folder: Path, **config: Any) -> Path:
    torch.manual_seed(0)
    sizes = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 50,
    }
    return saved(kind(transformers.T5Config(**sizes)), folder, **config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [transformers.GPT2LMHeadModel, transformers.GPT2Model])
@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "GPT2Model"])
def test_complete_checkpoints_of_base_and_head(
    kind: Any, architecture: str, tied: bool, tmp_path: Path
) -> None:
    """transformers puts the base model's prefix right; a head that only one of them has
    is no fault of the body.
    """
    model = gpt2(kind, tie_word_embeddings=tied)
    loaded = load_model(
        ModelSource(
            name=str(saved(model, tmp_path / "m", architectures=[architecture]))
        )
    )
    prefix = "transformer." if architecture == "GPT2LMHeadModel" else ""
    lost = (
        not tied
        and kind is transformers.GPT2Model
        and architecture == "GPT2LMHeadModel"
    )
    assert loaded.keys.missing == (("lm_head.weight",) if lost else ())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_used(loaded, Watched(loaded.module, f"{prefix}h.1.mlp"))
    assert len(caught) == bool(loaded.keys.missing or loaded.keys.unexpected)
    body = getattr(model, "transformer", model)
    assert torch.equal(
        loaded.module.get_parameter(f"{prefix}h.1.mlp.c_fc.weight"),
        body.h[1].mlp.c_fc.weight,
    )
    if lost:
        with pytest.raises(
            ModelError,
            match=r"lacks 1 weight that the whole model needs.*lm_head.weight",
        ):
            check_whole(loaded)
    else:
        check_whole(loaded)


def test_poolers_heads_and_encoders(tmp_path: Path) -> None:
    """What the hub is full of: BertModel with a pooler, a masked-LM checkpoint without,
    T5 and its encoder alone.
    """
    as_head = {"architectures": ["BertForMaskedLM"]}
    cases = [
        (bert(transformers.BertModel, tmp_path / "1"), "encoder.layer.1.output", False),
        (bert(transformers.BertModel, tmp_path / "2", **as_head), "bert.encoder.layer.1.output", True),
        (bert(transformers.BertForMaskedLM, tmp_path / "3"), "bert.encoder.layer.1.output", False),
        (bert(transformers.BertForMaskedLM, tmp_path / "4", architectures=["BertModel"]), "encoder.layer.1.output", True),
        (bert(transformers.BertForPreTraining, tmp_path / "5", **as_head), "bert.encoder.layer.1.output", True),
        (t5(transformers.T5EncoderModel, tmp_path / "6"), "encoder.block.1.layer.1", False),
        (t5(transformers.T5ForConditionalGeneration, tmp_path / "7", architectures=["T5EncoderModel"]),
         "encoder.block.1.layer.1", False),
    ]  # fmt: skip
    for folder, at, noted in cases:
        model = load_model(ModelSource(name=str(folder)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_used(model, Watched(model.module, at))
        assert [one.category for one in caught] == [HarvestWarning] * noted, folder


def test_complete_checkpoints_need_no_second_look(tmp_path: Path) -> None:
    for name in ("builtin:mini", "builtin:tiny"):
        assert load_model(ModelSource(name=name)).keys == ((), (), frozenset())
    one, two = (
        harvested(saved(gpt2(), tmp_path / "m"), tmp_path / out, LAST)
        for out in ("one", "two")
    )
    assert objects(one) == objects(two)


def test_sizes_that_differ_name_both_shapes(tmp_path: Path) -> None:
    says = refused(saved(gpt2(), tmp_path / "m", vocab_size=60), tmp_path / "out")
    assert "transformer.wte.weight is [50, 16], wanted [60, 16]" in says
    says = refused(
        saved(gpt2(), tmp_path / "m", n_embd=32, vocab_size=50), tmp_path / "out"
    )
    assert "transformer.h.0.attn.c_attn.bias is [48], wanted [96]" in says
    assert "more. The two are of different models" in says


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty, cut off"),
        (b"\x00" * 5000, "cannot be read"),
        (POINTER.encode(), "git lfs pull"),
        (1000, "cannot be read"),
        (-100, "cannot be read"),
    ],
    ids=["empty", "garbage", "LFS", "cut in the header", "cut in the values"],
)
def test_damaged_weights_are_named(
    content: bytes | int, says: str, tmp_path: Path
) -> None:
    file = saved(gpt2(), tmp_path / "m") / "model.safetensors"
    file.write_bytes(
        content if isinstance(content, bytes) else file.read_bytes()[:content]
    )
    found = refused(tmp_path / "m", tmp_path / "out")
    assert found.startswith(f"{file}: ")
    assert says in found


def test_shards(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    gpt2().save_pretrained(folder, max_shard_size="10KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    harvested(folder, tmp_path / "right", LAST)
    shards[1].write_text(POINTER)
    assert refused(folder, tmp_path / "out").startswith(
        f"{shards[1]}: this is a git-LFS pointer"
    )
    shards[1].unlink()
    says = refused(folder, tmp_path / "out")
    assert "model.safetensors.index.json" in says
    assert f"{shards[1].name} is not there" in says
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    assert (
        "model.safetensors.index.json: this index of weights cannot be read"
        in refused(folder, tmp_path / "out")
    )
    (folder / "model.safetensors.index.json").write_text(POINTER)
    assert "model.safetensors.index.json: this is a git-LFS pointer" in refused(
        folder, tmp_path / "out"
    )


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "there is no model.safetensors" in refused(folder, tmp_path / "out")
    torch.save(gpt2().state_dict(), folder / "pytorch_model.bin")
    says = refused(folder, tmp_path / "out")
    assert "there is only pytorch_model.bin" in says
    assert "unpickling can run code" in says


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ],
)
def test_other_files_that_are_pointers(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUILTIN / "mini", tmp_path / "m"))
    (folder / name).write_text(POINTER)
    says = refused(folder, tmp_path / "out")
    assert says.startswith(f"{folder / name}: this is a git-LFS pointer")
    assert "git lfs pull" in says


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"version'),
        ("tokenizer.json", "{}"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": 3}',
        ),
        ("tokenizer.json", "\x00\x01"),
        ("tokenizer_config.json", '["no", "object"]'),
        ("tokenizer_config.json", "{"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_an_error(
    name: str, content: str, tmp_path: Path
) -> None:
    """In the model's folder, and of a store."""
    folder = Path(shutil.copytree(BUILTIN / "mini", tmp_path / "m"))
    (folder / name).write_text(content)
    assert f"{folder / name} cannot be read" in refused(folder, tmp_path / "out")
    store = harvested(BUILTIN / "mini", tmp_path / "store")
    assert store.tokenizer() is not None
    kept = {key.rpartition("/")[2]: store.file(key) for key in store.tokenizer_keys()}
    with pytest.raises(
        ModelError, match=f"{store.url}/tokenizer/{name} cannot be read"
    ):
        stored_tokenizer(
            {**kept, name: content.encode()}, "m", f"{store.url}/tokenizer"
        )


def test_a_tokenizer_without_its_vocabulary_is_an_error_and_none_is_none(
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(BUILTIN / "mini", tmp_path / "m"))
    (folder / "tokenizer.json").unlink()
    rewrite(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert "tokenizer.json" in refused(folder, tmp_path / "out")
    (folder / "tokenizer_config.json").unlink()
    # and not one with an empty vocabulary
    assert load_model(ModelSource(name=str(folder))).tokenizer is None
    assert harvested(folder, tmp_path / "out").tokenizer() is None
    shutil.copy(BUILTIN / "mini" / "tokenizer.json", folder)
    assert len(load_model(ModelSource(name=str(folder))).tokenizer) == 4096


@pytest.fixture
def custom(tmp_path: Path, no_question: None) -> Path:
    """A model with code of its own."""
    return with_own_code(tmp_path / tmp_path.name, tmp_path / "ran")


def test_custom_code_is_run_only_when_told(custom: Path, tmp_path: Path) -> None:
    says = refused(custom, tmp_path / "out", "blocks.0.hook_mlp_out")
    assert "custom code" in says
    assert "trust_remote_code" in says
    assert not (tmp_path / "ran").exists()
    model = load_model(ModelSource(name=str(custom), trust_remote_code=True))
    assert (tmp_path / "ran").exists()
    assert (model.info.architecture, model.info.n_layers) == ("OwnModel", 2)
    assert torch.equal(
        model.module.get_parameter("transformer.wte.weight"),
        gpt2().transformer.wte.weight,
    )
    check_used(model, Watched(model.module, "transformer.h.1.mlp"))


def test_custom_code_of_a_known_model_type(custom: Path, tmp_path: Path) -> None:
    """Its config is one of transformers, its class is not."""
    rewrite(
        custom / "config.json",
        model_type="gpt2",
        auto_map={"AutoModelForCausalLM": "modeling.OwnModel"},
    )
    assert "trust_remote_code" in refused(custom, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert (
        load_model(
            ModelSource(name=str(custom), trust_remote_code=True)
        ).info.architecture
        == "OwnModel"
    )
    # a class that transformers has: no code needed
    rewrite(custom / "config.json", architectures=["GPT2LMHeadModel"])
    assert (
        load_model(ModelSource(name=str(custom))).info.architecture == "GPT2LMHeadModel"
    )


def test_trusting_a_model_that_has_no_code_is_refused(tmp_path: Path) -> None:
    for name in ("builtin:mini", str(saved(gpt2(), tmp_path / "m"))):
        with pytest.raises(
            SpecError, match=r"--trust-remote-code: model .* has no code of its own"
        ):
            load_model(ModelSource(name=name, trust_remote_code=True))


@pytest.mark.usefixtures("no_question")
def test_a_tokenizer_of_its_own_class(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUILTIN / "mini", tmp_path / tmp_path.name))
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizer\nclass Own(PreTrainedTokenizer):\n"
        "    vocab_size = 3\n    def get_vocab(self):\n        return {'a': 0, 'b': 1, 'c': 2}\n"
        "    def _tokenize(self, text):\n        return list(text)\n"
        "    def _convert_token_to_id(self, token):\n        return 'abc'.index(token)\n"
        "    def save_vocabulary(self, *_, **__):\n        return ()\n"
    )
    (folder / "tokenizer.json").unlink()
    rewrite(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["own.Own", None]},
    )
    says = refused(folder, tmp_path / "out")
    assert "its tokenizer is custom code" in says
    store = harvested(folder, tmp_path / "out", trust_remote_code=True)
    with pytest.raises(ModelError, match="trust_remote_code"):
        store.tokenizer()
    assert type(store.tokenizer(trust_remote_code=True)).__name__ == "Own"


def test_a_store_does_not_make_code_run(custom: Path, tmp_path: Path) -> None:
    """What is recorded in the plan has to be said again to extend."""
    store = harvested(saved(gpt2(), tmp_path / "m"), tmp_path / "plain", FIRST)
    assert b"trust_remote_code" not in store.storage.read("plan.json")
    assert not store.manifest.spec.model.trust_remote_code
    with pytest.raises(SpecError, match="was harvested without custom code"):
        extend(store.url, sites=LAST, trust_remote_code=True)
    # a name that TransformerLens knows
    with_own_code(custom, tmp_path / "ran", "GPT2LMHeadModel")
    trusting = actstore.harvest(
        spec(custom, FIRST, trust_remote_code=True),
        str(tmp_path / "own"),
        tokens=TOKENS,
    )
    assert (
        json.loads(trusting.storage.read("plan.json"))["spec"]["model"][
            "trust_remote_code"
        ]
        is True
    )
    assert (tmp_path / "ran").exists()
    with pytest.raises(ModelError, match=r"say so again with trust_remote_code"):
        extend(trusting.url, sites=LAST)
    more = extend(trusting.url, sites=LAST, trust_remote_code=True)
    assert more.sites == (FIRST, LAST)


@pytest.mark.parametrize(
    ("method", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "aqlm"}, "aqlm"),
    ],
)
def test_a_package_that_is_not_here_is_named(
    method: dict[str, Any], package: str, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    says = refused(
        saved(gpt2(), tmp_path / "m", quantization_config=method), tmp_path / "out"
    )
    assert says.startswith(
        f"model {str(tmp_path / 'm')!r} needs a package that is not here: "
    )
    assert package in says
    assert "accelerate" not in says


def test_device_auto_without_accelerate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.is_accelerate_available", lambda *_: False)
    with pytest.raises(ModelError, match="device auto needs the package accelerate"):
        load_model(ModelSource(name="builtin:mini"), "auto")


@pytest.mark.parametrize(
    "config",
    [
        {"n_layer": "two"},
        {"n_embd": 0},
        {"n_head": 3},
        {"activation_function": "nosuch"},
        {"n_layer": None},
    ],
)
def test_a_config_that_makes_no_model(config: dict[str, Any], tmp_path: Path) -> None:
    assert "cannot be loaded from" in refused(
        saved(gpt2(), tmp_path / "m", **config), tmp_path / "out"
    )


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64])
def test_integers_in_place_of_weights(kind: torch.dtype, tmp_path: Path) -> None:
    """Quantised weights whose config has lost, or never told, how they are to be read."""
    name = "transformer.h.0.mlp.c_fc.weight"
    quantised = lambda state: {**state, name: (state[name] * 100).to(kind)}  # noqa: E731
    for folder, more in (
        ("m", {}),
        ("n", {"quantization_config": {"quant_method": "nosuch"}}),
    ):
        says = refused(
            saved(gpt2(), tmp_path / folder, quantised, **more), tmp_path / "out"
        )
        assert (
            f"weights in its checkpoint are integers: {name}. They are quantised"
            in says
        )
    tables = {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.uint8)}
    harvested(saved(gpt2(), tmp_path / "tables", with_more(tables)), tmp_path / "out")


def test_an_architecture_of_another_family(tmp_path: Path) -> None:
    """A base model's keys are the same, and its positions begin elsewhere."""
    model = transformers.RobertaModel(transformers.RobertaConfig(**SIZES))
    folder = saved(model, tmp_path / "m", architectures=["BertModel"])
    says = refused(folder, tmp_path / "out", "encoder.layer.1.output.dense")
    assert (
        "names the architecture BertModel, and says that the model is of type 'roberta'"
        in says
    )


@pytest.mark.parametrize("architectures", [None, [], "BertForMaskedLM"])
def test_a_config_that_names_no_architecture(
    architectures: Any, tmp_path: Path
) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    store = harvested(
        saved(model, tmp_path / "m", architectures=architectures), tmp_path / "out"
    )
    assert store.manifest.model.architecture == "BertForMaskedLM"


def test_the_config_is_no_json(tmp_path: Path) -> None:
    folder = saved(gpt2(), tmp_path / "m")
    for content in ("{", "[1]", "3", os.linesep):
        (folder / "config.json").write_text(content)
        assert "config.json" in refused(folder, tmp_path / "out")


def test_a_tokenizer_beside_a_model_that_is_loaded_is_refused(tmp_path: Path) -> None:
    """It would not be used."""
    spec = {
        "model": "builtin:mini",
        "corpus": "builtin:stdlib",
        "sites": "blocks.0.hook_mlp_out",
        "tokens": 64,
        "context": 8,
    }
    with pytest.raises(SpecError, match="tokenizer goes with a model in memory"):
        harvest(spec, str(tmp_path / "s"), tokenizer=object())
    with pytest.raises(SpecError, match="tokenizer goes with a model in memory"):
        estimate(spec, tokenizer=object())
