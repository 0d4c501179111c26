"""Any class of model that reads text: base and task classes, encoder–decoders, and
sites by the names of modules.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from actstore.errors import ModelError, SiteError, SpecError
from actstore.model.load_model import LoadedModel, wrap_module
from actstore.model.open_tap import open_tap

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SIZES |= {"vocab_size": 97, "max_position_embeddings": 64}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 97,
    "n_positions": 64,
    "eos_token_id": 0,
}
GPT2 |= {"bos_token_id": 0}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "vocab_size": 97,
}
OPT |= {"max_position_embeddings": 64, "word_embed_proj_dim": 32}
T5 = {
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 8,
    "d_ff": 48,
    "vocab_size": 97,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
BART |= {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("attention_heads", 4), ("ffn_dim", 48))
}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 97}
ROBERTA = {**SIZES, "max_position_embeddings": 66}
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Electra": {**SIZES, "embedding_size": 32},
    "Roberta": ROBERTA,
    "Llama": SIZES,
    "GPT2": GPT2,
    "OPT": OPT,
    "T5": T5,
    "Bart": BART,
    "XLNet": XLNET,
    "FNet": {**SIZES, "type_vocab_size": 2, "use_tpu_fourier_optimizations": False},
    "ViT": {
        name: SIZES[name]
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    },
    "Mixtral": {**SIZES, "num_local_experts": 4, "num_key_value_heads": 2},
}
HOOKS = ("blocks.*.hook_{resid_pre,mlp_out,attn_out}", "blocks.*.attn.hook_{q,z}")
BOTH = (
    "encoder_blocks.*.hook_{resid_pre,mlp_out}",
    "decoder_blocks.*.hook_{resid_pre,mlp_out}",
)


def module(kind: str, family: str = "", **changes: Any) -> Any:
    """A small model of a class such as BertModel, with weights that its norms and
    biases show through.
    """
    family = family or next(
        name for name in sorted(CONFIGS, key=len, reverse=True) if kind.startswith(name)
    )
    torch.manual_seed(0)
    made = getattr(transformers, kind)(
        getattr(transformers, f"{family}Config")(**{**CONFIGS[family], **changes})
    )
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    return made


def values(
    tap: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    got: dict[str, torch.Tensor] = {}
    tap.run(tokens, mask, lambda i, x: got.__setitem__(tap.sites[i].name, x.clone()))
    return got


def outputs(model: Any, name: str, **inputs: torch.Tensor) -> torch.Tensor:
    """A module's own output, from a hook of the test's."""
    seen: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _m, _i, output: seen.append(output)
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def row(n: int = 7) -> torch.Tensor:
    return torch.randint(3, 97, (2, n), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("language_model", "kind"),
    [
        ("BertForMaskedLM", "BertModel"),
        ("BertForMaskedLM", "BertForSequenceClassification"),
        ("RobertaForMaskedLM", "RobertaForTokenClassification"),
        ("LlamaForCausalLM", "LlamaModel"),
        ("LlamaForCausalLM", "LlamaForSequenceClassification"),
        ("GPT2LMHeadModel", "GPT2Model"),
        ("OPTForCausalLM", "OPTModel"),
        ("BartForConditionalGeneration", "BartModel"),
        ("T5ForConditionalGeneration", "T5Model"),
    ],
)
def test_base_and_task_classes_have_the_hook_names_and_values_of_their_family(
    language_model: str, kind: str
) -> None:
    whole, other = module(language_model), module(kind)
    other.base_model.load_state_dict(whole.base_model.state_dict(), strict=False)
    patterns = BOTH if whole.config.is_encoder_decoder else HOOKS
    wanted, got = (
        values(open_tap(wrap_module(one), patterns), row()) for one in (whole, other)
    )
    assert list(got) == list(wanted)
    for name, x in wanted.items():
        torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-5)


def test_an_encoder_alone_has_the_hook_names_of_its_half() -> None:
    whole, other = module("T5ForConditionalGeneration"), module("T5EncoderModel")
    other.load_state_dict(whole.state_dict(), strict=False)
    wanted, got = (
        values(open_tap(wrap_module(one), BOTH[:1]), row()) for one in (whole, other)
    )
    for name, x in wanted.items():
        torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        SiteError,
        match=r"decoder_blocks\.0.*T5EncoderModel computes nothing of the same values",
    ):
        open_tap(wrap_module(other), BOTH[1:])


@pytest.mark.parametrize(
    ("kind", "patterns", "first"),
    [
        (
            "ElectraModel",
            ("encoder.layer.*.output.dense",),
            "encoder.layer.0.output.dense",
        ),
        # time first
        ("XLNetLMHeadModel", ("transformer.layer.*.ff",), "transformer.layer.0.ff"),
        (
            "BertModel",
            ("encoder.layer.*.output.dense",),
            "encoder.layer.0.output.dense",
        ),
        # a row per token
        (
            "OPTForCausalLM",
            ("model.decoder.layers.*.fc2",),
            "model.decoder.layers.0.fc2",
        ),
        ("MixtralModel", ("layers.*.mlp.gate",), "layers.0.mlp.gate"),
        # in the head
        (
            "BertForTokenClassification",
            ("classifier", "bert.encoder.layer.*.output"),
            "classifier",
        ),
    ],
)
def test_modules_are_sites_by_their_names(
    kind: str, patterns: tuple[str, ...], first: str
) -> None:
    model = module(kind)
    tap = open_tap(wrap_module(model), patterns)
    assert tap.sites[0].name == first
    for shape in ((2, 7), (3, 3)):  # as many sequences as positions too
        tokens = torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(2))
        wanted = outputs(model, first, input_ids=tokens)
        wanted = (
            wanted.transpose(0, 1)
            if kind.startswith("XLNet")
            else wanted.reshape(*shape, -1)
        )
        torch.testing.assert_close(
            values(tap, tokens)[first], wanted, rtol=1e-4, atol=1e-5
        )


def test_hook_names_and_modules_go_together() -> None:
    model = module("GPT2LMHeadModel")
    tap = open_tap(wrap_module(model), ("transformer.h.1.mlp", "blocks.*.hook_mlp_out"))
    got = values(tap, row())
    assert [s.name for s in tap.sites] == [
        "transformer.h.1.mlp",
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_mlp_out",
    ]
    torch.testing.assert_close(got["transformer.h.1.mlp"], got["blocks.1.hook_mlp_out"])
    with pytest.raises(SiteError, match="within TransformerLens' bridge only"):
        open_tap(
            wrap_module(model), ("transformer.h.1.mlp", "blocks.0.attn.hook_result")
        )


def test_two_dimensional_values_have_hook_names_too() -> None:
    model = module("OPTForCausalLM")
    got = values(
        open_tap(wrap_module(model), ("blocks.*.{hook_mlp_out,mlp.hook_post}",)), row()
    )
    wanted = outputs(model, "model.decoder.layers.1.fc2", input_ids=row()).reshape(
        2, 7, 32
    )
    torch.testing.assert_close(
        got["blocks.1.hook_mlp_out"], wanted, rtol=1e-4, atol=1e-5
    )
    assert got["blocks.0.mlp.hook_post"].shape == (2, 7, 48)


@pytest.mark.parametrize(
    ("kind", "site", "error", "says"),
    [
        (
            "ElectraModel",
            "blocks.0.hook_mlp_out",
            SiteError,
            "no adapter for ElectraModel, so sites of ElectraModel are",
        ),
        ("ElectraModel", "encoder.layer.0.outptu", SiteError, "encoder.layer.0.output"),
        ("BertModel", "pooler", SiteError, "shape [2, 32]"),
        ("LlamaModel", "rotary_emb", SiteError, "not one vector per token"),
        ("ViTModel", "encoder.layer.0.output", ModelError, "pixel_values"),
    ],
)
def test_what_cannot_be_is_refused(
    kind: str, site: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        open_tap(wrap_module(module(kind)), (site,))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["T5ForConditionalGeneration", "BartForConditionalGeneration"]
)
def test_a_decoder_sees_the_tokens_shifted_right(kind: str) -> None:
    model = module(kind, decoder_start_token_id=2)
    tap = open_tap(
        wrap_module(model),
        ("decoder_blocks.1.hook_resid_post", "encoder_blocks.1.hook_resid_post"),
    )
    got, tokens = values(tap, row()), row()
    shifted = model.prepare_decoder_input_ids_from_labels(tokens)  # the model's own
    assert shifted[0, 0] == 2
    last = "decoder.block.1" if kind.startswith("T5") else "model.decoder.layers.1"
    wanted = outputs(model, last, input_ids=tokens, decoder_input_ids=shifted)
    torch.testing.assert_close(
        got["decoder_blocks.1.hook_resid_post"], wanted, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("GPT2LMHeadModel", "blocks.1.hook_resid_post"),
        ("GPT2LMHeadModel", "blocks.1.attn.hook_result"),  # through the bridge
        ("GPT2LMHeadModel", "transformer.h.1.mlp"),
        ("LlamaModel", "blocks.1.hook_resid_post"),
        ("BertModel", "blocks.1.hook_resid_post"),
        ("OPTForCausalLM", "blocks.1.hook_mlp_out"),
        ("RobertaModel", "encoder.layer.1.output"),
        ("T5ForConditionalGeneration", "decoder_blocks.1.hook_resid_post"),
    ],
)
def test_values_at_tokens_are_those_without_padding(
    kind: str, site: str, side: str
) -> None:
    tap = open_tap(wrap_module(module(kind)), (site,))
    tokens, pads = row(), torch.zeros(2, 4, dtype=torch.int64)
    mask = torch.ones_like(tokens)
    both = (
        ((tokens, pads), (mask, pads))
        if side == "right"
        else ((pads, tokens), (pads, mask))
    )
    padded = values(tap, *(torch.cat(parts, 1) for parts in both))[site]
    at = slice(0, 7) if side == "right" else slice(4, 11)
    torch.testing.assert_close(
        padded[:, at], values(tap, tokens)[site], rtol=1e-4, atol=1e-5
    )


def test_padding_that_a_model_cannot_take_is_refused() -> None:
    bart = open_tap(wrap_module(module("BartModel")), ("encoder.layers.1.fc2",))
    left = torch.tensor([[-1, -1, 5, 6], [3, 4, 5, 6]], dtype=torch.int32).numpy()
    with pytest.raises(SpecError, match="BartModel gives other values then"):
        bart.check_padding(left)
    bart.check_padding(left[:, ::-1])
    with pytest.raises(SpecError, match="padded before their tokens"):
        bart.run(torch.ones(1, 4).long(), torch.tensor([[0, 1, 1, 1]]), lambda *_: None)
    # it has no mask
    fnet = open_tap(wrap_module(module("FNetModel")), ("encoder.layer.1.output",))
    with pytest.raises(SpecError, match="FNetModel gives other values at tokens then"):
        fnet.check_padding(left[:, ::-1])


def test_contexts_are_as_long_as_the_model_has_positions() -> None:
    def contexts(model: LoadedModel, *lengths: int) -> None:
        for length in lengths:
            model.check_context(length)
            open_tap(model, ("encoder.layer.1.output",), context=length)

    roberta = wrap_module(module("RobertaModel"))
    assert roberta.max_context == 64  # of 66, the first two are for padding
    contexts(roberta, 63, 64)
    with pytest.raises(SpecError, match="RobertaModel has 64 positions"):
        roberta.check_context(65)
    contexts(wrap_module(module("BertModel")), 64)


def test_a_context_that_does_not_run_is_refused_at_the_door() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place, self.out = (
                nn.Embedding(50, 6),
                nn.Embedding(12, 6),
                nn.Linear(6, 6),
            )

        def forward(self, tokens: torch.Tensor) -> Any:
            return self.out(
                self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
            )

    model = wrap_module(Plain())
    open_tap(model, ("out",), context=12)
    open_tap(model, ("embed",), context=13)  # nothing after it is run
    with pytest.raises(
        SpecError, match="Plain does not run on a context of 13 tokens: IndexError"
    ):
        open_tap(model, ("out",), context=13)


def test_a_width_that_grows_with_the_context_is_no_vector() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.pattern, self.chosen = (
                nn.Embedding(50, 6),
                nn.Identity(),
                nn.Identity(),
            )

        def forward(self, tokens: torch.Tensor) -> Any:
            x = self.embed(tokens)
            scores = self.pattern(x @ x.mT)
            return self.chosen(scores.argmax(-1, keepdim=True).float()) + x

    model = wrap_module(Attends())
    with pytest.raises(SiteError, match="not one vector per token"):
        open_tap(model, ("pattern",))
    assert open_tap(model, ("chosen",)).sites[0].d == 1
