"""SAELens trains one SAE on rows of a file: CASE.json OUT. Run by the Python of
SAELens' environment.

Its own SAETrainer does all of it; what the case does not say is SAELens' default.
`recipe` adds the schedule of SAELens' tutorials: the learning rate decays to 0 over the
last fifth, the penalty warms up over the first twentieth; and for jumprelu Anthropic's
setup as its documentation gives it, since its default threshold hardly moves in short
runs. OUT gets the SAE as SAELens saves it for inference, and `seen.json`: what SAELens
says of the first rows.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer

NORM_BATCHES = 16  # from which the mean norm is estimated, where it is asked for
PENALTY = {"standard": "l1", "gated": "l1", "jumprelu": "l0"}
ANTHROPIC = {
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 0.1,
    "jumprelu_ste_to_input": True,
    "pre_act_loss_coefficient": 3e-6,
}


def batches(case: dict[str, Any]) -> Iterator[torch.Tensor]:
    rows = np.load(case["rows"], mmap_mode="r")
    for first in range(0, case["n_rows"], case["batch"]):
        yield torch.from_numpy(np.array(rows[first : first + case["batch"]]))


def sae_options(case: dict[str, Any], steps: int) -> dict[str, Any]:
    kind = case["kind"]
    options: dict[str, Any] = {
        "d_in": case["d"],
        "d_sae": case["n_latents"],
        "device": "cpu",
    }
    if "topk" in kind:
        options["k"] = case["k"]
    if "matryoshka" in kind:
        options["matryoshka_widths"] = [
            round(share * case["n_latents"]) for share in case["prefixes"]
        ]
    if kind in PENALTY:
        name = PENALTY[kind]
        if case["penalty"] is not None:
            options[f"{name}_coefficient"] = case["penalty"]
        if case["recipe"]:
            options[f"{name}_warm_up_steps"] = steps // 20
            options |= ANTHROPIC if kind == "jumprelu" else {}
    if case["normalise"]:
        options["normalize_activations"] = "expected_average_only_in"
    return options


def main() -> None:
    case, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.manual_seed(case["seed"])
    torch.set_num_threads(case["threads"])
    steps = case["n_rows"] // case["batch"]
    sae_class, config_class = get_sae_training_class(case["kind"])
    options = sae_options(case, steps)
    sae = sae_class(config_class(**options))
    rates = {} if case["lr"] is None else {"lr": case["lr"]}
    config = SAETrainerConfig(
        total_training_samples=steps * case["batch"],
        train_batch_size_samples=case["batch"],
        lr_decay_steps=steps // 5 if case["recipe"] else 0,
        n_batches_for_norm_estimate=NORM_BATCHES,
        logger=LoggingConfig(log_to_wandb=False),
        device="cpu",
        **rates,
    )
    if config.lr_end is None:
        # as its runner sets it; a constant schedule ignores it
        config.lr_end = config.lr / 10
    data = batches(case)
    if case["normalise"]:  # the estimate takes batches of its own away
        data = itertools.chain(itertools.islice(batches(case), NORM_BATCHES), data)
    SAETrainer(config, sae, data_provider=data).fit()
    sae.save_inference_model(out)
    x = next(batches(case))
    trained = SAE.load_from_disk(out)
    with torch.no_grad():
        latents = trained.encode(x)
        error = (trained.decode(latents) - x).square().sum()
    seen = {
        "l0": float((latents > 0).sum() / len(x)),
        "error": float(error),
        "version": version("sae-lens"),
    }
    seen |= {
        "lr": config.lr,
        "penalty": getattr(
            sae.cfg, f"{PENALTY.get(case['kind'], '')}_coefficient", None
        ),
    }
    (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
