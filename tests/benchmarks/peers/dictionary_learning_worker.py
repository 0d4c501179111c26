"""dictionary_learning: the trainers' `update`. Run by the Python of that package's
environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# The peer's Python runs this file by its path, with its folder in `sys.path`.
if TYPE_CHECKING:
    from tests.benchmarks.peers.worker import Case, Work, serve
else:
    from worker import Case, Work, serve

TRAINERS = {
    "standard": ("standard", "StandardTrainer"),
    "standard_april": ("standard", "StandardTrainerAprilUpdate"),
    "top_k": ("top_k", "TopKTrainer"),
    "batch_top_k": ("batch_top_k", "BatchTopKTrainer"),
    "gated": ("gdm", "GatedSAETrainer"),
    "jumprelu": ("jumprelu", "JumpReluTrainer"),
    "matryoshka_batch_top_k": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
}
GROUPS = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def prepare(case: Case) -> Work:
    """One whole `update`, under bfloat16 autocast where asked (on a CPU, `trainSAE`
    itself leaves autocast off).
    """
    import importlib

    import torch

    module, name = TRAINERS[case["kind"]]
    options: dict[str, Any] = {
        "steps": 10**6,
        "activation_dim": case["d"],
        "dict_size": case["latents"],
        "layer": 0,
        "lm_name": "none",
        "device": "cpu",
        "seed": 0,
    }
    if "top_k" in case["kind"]:
        options["k"] = case["k"]
    if "matryoshka" in case["kind"]:
        options["group_fractions"] = list(GROUPS)
    trainer = getattr(
        importlib.import_module(f"dictionary_learning.trainers.{module}"), name
    )(**options)
    low = case["precision"] == "bfloat16"
    x = torch.randn(case["batch"], case["d"]).to(
        torch.bfloat16 if low else torch.float32
    )
    steps = 0

    def work() -> int:
        nonlocal steps
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            trainer.update(steps, x)
        steps += 1
        return len(x)

    return work


if __name__ == "__main__":
    serve("dictionary_learning.trainers", "dictionary-learning", prepare)
