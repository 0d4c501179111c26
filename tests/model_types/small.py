"""Small models of every type that transformers has: the type's own configuration with
small numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import configuration_auto, modeling_auto

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("model_dim", "decoder_hidden_size", "rotary_dim", "emb_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_blocks", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("hidden_dim", "d_inner", "ffn_hidden_size", "moe_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "dense_intermediate_size", "ffn_size", "d_ffn"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "qk_nope_head_dim", "v_head_dim", "attention_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "q_lora_rank", "kv_lora_rank", "index_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 0),
    **dict.fromkeys(("pad_token_id",), 1),
    **dict.fromkeys(("eos_token_id",), 2),
    "vocab_size": 99,
    "state_size": 8,
    "sliding_window": 16,
    "vocab_size_per_layer_input": 99,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


# What else a type's own numbers must be for the small ones to fit together.
CHANGES: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "layer_types": ["mamba", "attention"],
    },
    "falcon_h1": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"],
    },
    "longcat_flash": {"qk_head_dim": 16, "head_dim": 8},
    "perceiver": {
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_cross_attention_heads": 4,
    },
    "deepseek_v3": {"first_k_dense_replace": 1},
    "dots1": {"layer_types": None, "first_k_dense_replace": 1},
}


def small_config(kind: Any, **changes: Any) -> Any:
    """A configuration of this class with small numbers wherever it has a field of that
    name.
    """
    usual = kind()
    fields = {*usual.to_dict(), *usual.attribute_map}
    values = {
        name: value
        for name, value in SMALL.items()
        if name in fields and _fits(getattr(usual, name, None), value)
    }
    if "qk_rope_head_dim" in fields:  # it is the width of heads there
        values.pop("head_dim", None)
        values["num_key_value_heads"] = SMALL["num_attention_heads"]
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        inner = getattr(usual, name, None)
        if inner is not None:
            values[name] = small_config(
                type(inner) if part.__name__ == "AutoConfig" else part
            ).to_dict()
    return kind(**{**values, **changes})


def _fits(usual: Any, value: Any) -> bool:
    return usual is None or isinstance(usual, int)


# Model types that do not read text alone, or have no language model: some of each kind.
OTHERS = (
    "clip",
    "clip_text_model",
    "dpr",
    "hubert",
    "siglip",
    "speech_to_text",
    "t5gemma2_encoder",
    "vit",
    "wav2vec2",
)


def language_models() -> dict[str, str]:
    """Every model type with a language model, and some others: the class that is tried."""
    found: dict[str, str] = {}
    for names in (
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        {one: modeling_auto.MODEL_MAPPING_NAMES[one] for one in OTHERS},
    ):
        for one, name in names.items():
            if one in configuration_auto.CONFIG_MAPPING_NAMES:
                found.setdefault(one, name if isinstance(name, str) else name[0])
    return dict(sorted(found.items()))


def small_model(model_type: str, name: str) -> Any:
    """A model of this class with random weights that its norms and biases show through."""
    kind = configuration_auto.CONFIG_MAPPING[model_type]
    torch.manual_seed(0)
    model = getattr(transformers, name)(
        small_config(kind, **CHANGES.get(model_type, {}))
    )
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.1)
    return model.eval()
