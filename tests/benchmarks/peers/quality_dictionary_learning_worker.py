"""dictionary_learning trains one SAE on rows of a file: CASE.json OUT. Run by the
Python of that package's environment.

Its own `trainSAE` does all of it; what the case does not say is the trainer's default.
Its warm-ups (1,000 and 2,000 steps, and 1,000 before a threshold is kept) are refused
by it for runs that are shorter: of those they take the shares WARM_UPS instead.
`recipe` adds what its `training_demo` sets: rows normalised, a decay from 0.8 of the
run on. OUT/trainer_0 gets the SAE, and OUT `seen.json`: what dictionary_learning says
of the first rows.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary

TRAINERS = {
    "standard": ("standard", "StandardTrainer"),
    "standard_april": ("standard", "StandardTrainerAprilUpdate"),
    "top_k": ("top_k", "TopKTrainer"),
    "batch_top_k": ("batch_top_k", "BatchTopKTrainer"),
    "gated": ("gdm", "GatedSAETrainer"),
    "jumprelu": ("jumprelu", "JumpReluTrainer"),
    "matryoshka_batch_top_k": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
}
WARM_UPS = {
    "warmup_steps": 0.05,
    "sparsity_warmup_steps": 0.1,
    "threshold_start_step": 0.5,
}
PENALTY = {
    "standard": "l1_penalty",
    "standard_april": "l1_penalty",
    "gated": "l1_penalty",
    "jumprelu": "sparsity_penalty",
}


class Batches:
    """The rows of a file, from their start each time they are iterated."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case, self.rows = case, np.load(case["rows"], mmap_mode="r")

    def __iter__(self) -> Iterator[torch.Tensor]:
        for first in range(0, self.case["n_rows"], self.case["batch"]):
            yield torch.from_numpy(
                np.array(self.rows[first : first + self.case["batch"]])
            )


def trainer_options(case: dict[str, Any], steps: int) -> dict[str, Any]:
    kind = case["kind"]
    module, name = TRAINERS[kind]
    trainer = getattr(
        importlib.import_module(f"dictionary_learning.trainers.{module}"), name
    )
    defaults = {
        key: value.default
        for key, value in inspect.signature(trainer.__init__).parameters.items()
    }
    options: dict[str, Any] = {
        "trainer": trainer,
        "steps": steps,
        "activation_dim": case["d"],
        "dict_size": case["n_latents"],
        "layer": 0,
        "lm_name": "none",
        "device": "cpu",
        "seed": case["seed"],
    }
    for name, share in WARM_UPS.items():
        if name in defaults:
            options[name] = min(defaults[name], int(share * steps))
    if "top_k" in kind:
        options["k"] = case["k"]
    if "matryoshka" in kind:
        nested = case["prefixes"]
        options["group_fractions"] = [
            after - before for before, after in zip([0, *nested], nested, strict=False)
        ]
    if kind == "jumprelu":
        options["target_l0"] = float(case["k"])
    if case["penalty"] is not None:
        options[PENALTY[kind]] = case["penalty"]
    if case["lr"] is not None:
        options["lr"] = case["lr"]
    if case["recipe"]:
        options["decay_start"] = int(0.8 * steps)
    return options


def main() -> None:
    case, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.manual_seed(case["seed"])
    torch.set_num_threads(case["threads"])
    steps, data = case["n_rows"] // case["batch"], Batches(case)
    trainSAE(
        data,
        [trainer_options(case, steps)],
        steps=steps,
        save_dir=str(out),
        device="cpu",
        normalize_activations=case["normalise"],
    )
    trained, config = load_dictionary(str(out / "trainer_0"), "cpu")
    x = next(iter(data))
    with torch.no_grad():
        latents = trained.encode(x)
        error = (trained.decode(latents) - x).square().sum()
    seen = {
        "l0": float((latents > 0).sum() / len(x)),
        "error": float(error),
        "version": version("dictionary-learning"),
    }
    used = config["trainer"]
    seen |= {
        "lr": used["lr"],
        "penalty": used.get("l1_penalty", used.get("sparsity_penalty")),
    }
    (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
