"""Trains SAELens' own SAE from our stream; run by test_saelens_provider.py with a
Python that has sae-lens.

Arguments: the store, and a folder of packages to fall back to (those that only our side
needs).
"""

from __future__ import annotations

import json
import sys

sys.path.append(sys.argv[2])

import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

import actstore
from schemas.stream import StreamSpec

BATCH, STEPS = 128, 300


def main() -> None:
    torch.manual_seed(0)
    store = actstore.open(sys.argv[1])
    held_out = torch.cat(
        list(
            store.stream(
                StreamSpec(batch=BATCH, split="held_out", rescale="sqrt_d")
            ).tensors()
        )
    )
    stream = store.stream(StreamSpec(batch=BATCH, epochs=None, rescale="sqrt_d"))
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(d_in=stream.d, d_sae=64, l1_coefficient=0.1)
    )
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=3e-3,
        lr_end=3e-4,
        logger=LoggingConfig(log_to_wandb=False),
    )

    def fvu() -> float:
        with torch.no_grad():
            error = (sae.decode(sae.encode(held_out)) - held_out).square().sum()
        return float(error / (held_out - held_out.mean(dim=0)).square().sum())

    before = fvu()
    SAETrainer(config, sae, data_provider=stream.tensors()).fit()
    print(
        json.dumps({"before": before, "after": fvu(), "batches": stream.state().batch})
    )
    stream.close()


if __name__ == "__main__":
    main()
