"""Train the language models that ship with the package: `python -m
actstore.builtin.train_language_models --out DIR`.

`tiny` is a GPT-2 of 6 layers and width 128; `mini` the miniature of the source
documents (residual size 16, 6 layers, MLP width 64). Both read the Python standard
library of the running interpreter through one byte-level BPE of 4,096 tokens and are
stored in Hugging Face layout, float16 safetensors. The card written beside the weights
states losses.
"""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from actstore.builtin import stdlib_corpus

VOCABULARY = 4096
CONTEXT = 256
END = "<|endoftext|>"
BATCH = 32
SHAPES = {
    "tiny": {"n_embd": 128, "n_layer": 6, "n_head": 4, "n_inner": 512},
    "mini": {"n_embd": 16, "n_layer": 6, "n_head": 2, "n_inner": 64},
}
PEAK_LR = {"tiny": 3e-3, "mini": 1e-2}


class Split(NamedTuple):
    """Token streams, one BOS before each document: int64 [n]."""

    train: torch.Tensor
    held_out: torch.Tensor


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE (GPT-2's kind) over the training documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def split(tokenizer: Tokenizer, documents: list[tuple[str, str]]) -> Split:
    """Documents are shuffled (digest order), then split by document."""
    parts: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for path, text in documents:
        ids = [0, *tokenizer.encode(text).ids]
        parts[stdlib_corpus.held_out(path)].append(np.asarray(ids, dtype=np.int64))
    return Split(
        *(torch.from_numpy(np.concatenate(parts[out])) for out in (False, True))
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the run, then a cosine to a twentieth of the peak."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(name: str, data: Split, steps: int, seed: int) -> GPT2LMHeadModel:
    """Train one model: AdamW, gradient norm at most 1, bfloat16 autocast over float32
    weights.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SHAPES[name],
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=PEAK_LR[name],
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=True,
    )
    starts = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT)
    for step in track(range(steps), description=f"training {name}"):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_LR[name])
        at = torch.randint(0, len(data.train) - CONTEXT, (BATCH, 1), generator=starts)
        batch = data.train[at + offsets]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch, labels=batch).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 250 == 0:
            print(f"{name} step {step} loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def mean_loss(
    model: GPT2LMHeadModel, stream: torch.Tensor, n_tokens: int = 400_000
) -> float:
    """Next-token cross-entropy in nats over the first `n_tokens` of a stream, in
    contexts of `CONTEXT`.
    """
    n = min(n_tokens, len(stream)) // CONTEXT
    losses = [
        float(model(rows, labels=rows).loss)
        for rows in stream[: n * CONTEXT].view(n, CONTEXT).split(BATCH)
    ]
    return sum(losses) / len(losses)


def unigram_loss(stream: torch.Tensor) -> float:
    """Entropy of the token frequencies, in nats: what a model that ignores context
    reaches.
    """
    p = torch.bincount(stream, minlength=VOCABULARY).double() / len(stream)
    return float(-(p[p > 0] * p[p > 0].log()).sum())


def save(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    data: Split,
    out: Path,
    steps: int,
    seconds: float,
) -> None:
    """Weights in float16, tokenizer and card; the losses in the card are of the stored
    float16 weights.
    """
    model.half().save_pretrained(out, safe_serialization=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        model_max_length=CONTEXT,
    )
    fast.save_pretrained(out)
    stored = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).eval()
    card = {
        "architecture": "GPT-2",
        "parameters": sum(p.numel() for p in stored.parameters()),
        "trained_on": (
            f"the standard library of Python {platform.python_version()}, its test"
            " suite included"
        ),
        "train_tokens": len(data.train),
        "held_out_tokens": len(data.held_out),
        "tokens_seen": steps * BATCH * CONTEXT,
        "cpu_minutes": round(seconds / 60),
        "unigram_loss_nats": round(unigram_loss(data.train), 3),
        "train_loss_nats": round(mean_loss(stored, data.train), 3),
        "held_out_loss_nats": round(mean_loss(stored, data.held_out), 3),
        "licence": "weights Apache-2.0; text: Python Software Foundation License",
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2), flush=True)


def main(
    out: Annotated[Path, typer.Option(help="folder that gets tiny/ and mini/")] = Path(
        __file__
    ).parent,
    tiny_steps: Annotated[int, typer.Option(help="about 0.4 s each on 2 cores")] = 8000,
    mini_steps: int = 4000,
    seed: int = 0,
) -> None:
    """Train the tokenizer and both models, and write them under OUT."""
    documents = list(stdlib_corpus.documents())
    tokenizer = train_tokenizer(
        [text for path, text in documents if not stdlib_corpus.held_out(path)]
    )
    data = split(tokenizer, documents)
    print(
        f"{len(data.train):,} training tokens, {len(data.held_out):,} held out",
        flush=True,
    )
    for name, steps in (("tiny", tiny_steps), ("mini", mini_steps)):
        began = time.process_time()
        model = fit(name, data, steps, seed)
        save(model, tokenizer, data, out / name, steps, time.process_time() - began)


if __name__ == "__main__":
    typer.run(main)
