"""CE and KL of six sites against the naive way: four whole forwards for each site.

Value: seconds of `model_metrics` on `builtin:tiny` with an SAE of its six MLP outputs;
floor: those of the naive way, which is written here with TransformerLens' own calls,
on the same sequences, in batches of the same size. Both take turns in one process, the
median of the pairs. Less than 1 is faster than the naive way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor

import actstore
from actstore.machine.glibc_malloc import keep_freed_memory
from actstore.store.store import Store
from schemas.records import BenchRecord, ModelMetrics
from schemas.train import TrainSpec
from trainer.evaluation import cross_entropy_and_kl as ours
from trainer.evaluation.patched_language_model import Subject
from trainer.runs.trained_sae import TrainedSae, load
from trainer.training.train_group import train_group


def main() -> None:
    """Print a JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        store = harvested(f"{folder}/store", options.context)
        sae = trained(store, f"{folder}/run")
        subject = ours.subject_of(sae, store)
        pairs = []
        for turn in range(options.pairs + 1):
            began = time.perf_counter()
            fast = ours.model_metrics(
                sae, store, n_sequences=options.sequences, subject=subject
            )
            between = time.perf_counter()
            plain = naive(sae, store, subject, options.sequences)
            ended = time.perf_counter()
            check_alike(fast, plain)
            if turn > 0:  # the first pair warms up
                pairs.append((between - began, ended - between))
    value, floor = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    record = BenchRecord(
        bench="cross_entropy",
        case="6 sites of builtin:tiny against 4 forwards per site",
        value=value,
        unit="s",
        floor=floor,
        ratio=statistics.median(a / b for a, b in pairs),
    )
    sys.stdout.write(record.model_dump_json() + "\n")


def harvested(url: str, context: int) -> Store:
    """A store with enough sequences held out."""
    spec = {
        "model": "builtin:tiny",
        "corpus": "builtin:stdlib",
        "sites": ["blocks.*.hook_mlp_out"],
        "tokens": 20 * 40 * context,
        "context": context,
    }
    return actstore.harvest(spec, url)


def trained(store: Store, url: str) -> TrainedSae:
    """An SAE after a few steps: how good it is changes no time."""
    raw = {
        "store": store.url,
        "sae": {"kind": "topk", "k": 16, "n_latents": 512},
        "rows": 512 * 20,
        "stream": {"batch": 512, "rescale": "linear"},
    }
    train_group(store, {url: TrainSpec.model_validate(raw)})
    return load(url)


@torch.no_grad()
def naive(
    sae: TrainedSae, store: Store, subject: Subject, n_sequences: int
) -> list[tuple[float, ...]]:
    """CE clean, SAE, zero and mean, and KL, of each site: every forward a whole one."""
    bridge = subject._bridge
    tokens = torch.from_numpy(ours.held_out_tokens(store, n_sequences))
    special = ours.special_mask(tokens, store)
    figures = []
    for site in sae.sites:
        mean = torch.from_numpy(store.mean(site)).float()
        sums = [0.0] * 5
        n = 0
        for ids, stays in zip(
            tokens.split(ours.BATCH), special.split(ours.BATCH), strict=True
        ):
            predicts = ~stays[:, :-1]
            n += int(predicts.sum())
            replaced: list[Any] = [
                lambda x, site=site: sae.reconstruct(x, site),
                torch.zeros_like,
                lambda x, mean=mean: mean.expand_as(x),
            ]
            clean = log_p(bridge, ids, [])
            found = [clean]
            for new in replaced:

                def hook(
                    value: Tensor, hook: Any, new: Any = new, stays: Tensor = stays
                ) -> Tensor:
                    return torch.where(stays[..., None], value, new(value))

                found.append(log_p(bridge, ids, [(site, hook)]))
            for i, one in enumerate(found):
                chosen = one[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
                sums[i] -= float((chosen * predicts).sum())
            kl = (clean.exp() * (clean - found[1])).sum(-1)[:, :-1]
            sums[4] += float((kl * predicts).sum())
        figures.append(tuple(total / n for total in sums))
    return figures


def log_p(bridge: Any, ids: Tensor, hooks: list[Any]) -> Tensor:
    """Log p(next token), [B, context, vocabulary], from a whole forward."""
    logits: Tensor = bridge.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)
    return logits.log_softmax(-1)


def check_alike(fast: tuple[ModelMetrics, ...], plain: list[tuple[float, ...]]) -> None:
    """Stop where the two ways do not agree: their times could not be compared."""
    for one, wanted in zip(fast, plain, strict=True):
        got = (one.ce_clean, one.ce_sae, one.ce_zero, one.ce_mean, one.kl)
        if max(abs(a - b) for a, b in zip(got, wanted, strict=True)) > 1e-4:
            raise SystemExit(f"{one.site}: {got} is not {wanted}")


if __name__ == "__main__":
    main()
