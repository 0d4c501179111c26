"""Train the language models that ship with the package.

Run it as `python -m actstore.builtin.train_language_models --out DIR`.

`tiny` is a GPT-2 of 6 layers and width 128. `mini`, with 6 layers, width 16 and an MLP
of 64, is small enough for experiments that take seconds. Both are trained on the Python
standard library, through one byte-level BPE of 4,096 tokens, and are stored in Hugging
Face layout as float16 safetensors. A card beside the weights has their losses.
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
# One special token begins texts and ends them, as in GPT-2. It is the first of all.
END = "<|endoftext|>"
BOS = 0
BATCH = 32  # contexts of a training step
SHAPES = {
    "tiny": {"n_embd": 128, "n_layer": 6, "n_head": 4, "n_inner": 512},
    "mini": {"n_embd": 16, "n_layer": 6, "n_head": 2, "n_inner": 64},
}
PEAK_LR = {"tiny": 3e-3, "mini": 1e-2}


class TokenStreams(NamedTuple):
    """All documents as two long streams of tokens, with BOS before each document.

    Attributes:
        train: int64 [n], the documents to train on.
        held_out: int64 [n], those to measure losses on.
    """

    train: torch.Tensor
    held_out: torch.Tensor


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE, GPT-2's kind, made from the training documents."""
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


def token_streams(
    tokenizer: Tokenizer, documents: list[tuple[str, str]]
) -> TokenStreams:
    """Return the documents, given as (path, text), as streams of tokens.

    A document is in one of the two streams as a whole. Their order is kept.
    """
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    for path, text in documents:
        tokens = np.asarray([BOS, *tokenizer.encode(text).ids], dtype=np.int64)
        stream = held_out if stdlib_corpus.is_held_out(path) else train
        stream.append(tokens)
    return TokenStreams(
        train=torch.from_numpy(np.concatenate(train)),
        held_out=torch.from_numpy(np.concatenate(held_out)),
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return a step's learning rate.

    It rises linearly over the first 2 % of the steps, then falls as a cosine from
    `peak` to a twentieth of it.
    """
    warm_up_steps = max(1, steps // 50)
    if step < warm_up_steps:
        return peak * (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, steps - warm_up_steps)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(name: str, data: TokenStreams, steps: int, seed: int) -> GPT2LMHeadModel:
    """Train one model and return it.

    AdamW on float32 weights, with a forward in bfloat16 and gradients of norm at most
    1. Every step takes contexts that begin anywhere in the stream.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        bos_token_id=BOS,
        eos_token_id=BOS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **SHAPES[name],
    )
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
        first_tokens = torch.randint(
            0, len(data.train) - CONTEXT, (BATCH, 1), generator=starts
        )
        # [BATCH, 1] + [CONTEXT]: the positions of BATCH contexts in the stream.
        batch = data.train[first_tokens + offsets]
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
    """Return the cross-entropy of the next token in nats.

    Args:
        model: The model to measure.
        stream: Tokens, int64 [n].
        n_tokens: How many of them are read, from the first on, in whole contexts.
    """
    n_contexts = min(n_tokens, len(stream)) // CONTEXT
    contexts = stream[: n_contexts * CONTEXT].view(n_contexts, CONTEXT)
    losses = [float(model(batch, labels=batch).loss) for batch in contexts.split(BATCH)]
    return sum(losses) / len(losses)


def unigram_loss(stream: torch.Tensor) -> float:
    """Return the entropy of the tokens' frequencies in nats, for int64 [n].

    It is the loss of the best model that ignores the context.
    """
    counts = torch.bincount(stream, minlength=VOCABULARY)
    frequencies = counts.double() / len(stream)
    p = frequencies[frequencies > 0]  # the limit of p log p at 0 is 0
    return float(-(p * p.log()).sum())


def save(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    data: TokenStreams,
    out: Path,
    steps: int,
    seconds: float,
) -> None:
    """Write a model's weights, its tokenizer and its card into the folder `out`.

    Args:
        model: Becomes float16, and is stored so.
        tokenizer: The model's tokenizer.
        data: The tokens on which the card's losses are measured, with the weights as
            they are stored.
        out: The folder to write.
        steps: How many steps the model was trained.
        seconds: Seconds of processor time that the training took.
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
    training_texts = [
        text for path, text in documents if not stdlib_corpus.is_held_out(path)
    ]
    tokenizer = train_tokenizer(training_texts)
    data = token_streams(tokenizer, documents)
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
