"""SAELens: its trainer's step, and its loader of cached activations. Run by the Python
of SAELens' environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

# The peer's Python runs this file by its path, with its folder in `sys.path`.
if TYPE_CHECKING:
    from tests.benchmarks.peers.worker import Case, Work, serve
else:
    from worker import Case, Work, serve

HOOK, CONTEXT = "blocks.0.hook_mlp_out", 128
PART_BYTES = 1 << 30  # SAELens: "HF datasets writer have problems with shards > 2GB"
LR = 3e-4
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


def prepare(case: Case) -> Work:
    return loader(case) if case["what"] == "loader" else step(case)


def step(case: Case) -> Work:
    """`SAETrainer.step`: forward, backward, clipping, Adam, schedules, firing counts."""
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    kind = case["kind"]
    sae_class, config_class = get_sae_training_class(kind)
    options: dict[str, Any] = {
        "d_in": case["d"],
        "d_sae": case["latents"],
        "dtype": "float32",
        "device": "cpu",
    }
    if "topk" in kind:
        options["k"] = case["k"]
    if "matryoshka" in kind:
        options["matryoshka_widths"] = [
            round(share * case["latents"]) for share in PREFIXES
        ]
    config = SAETrainerConfig(
        total_training_samples=10**10,
        train_batch_size_samples=case["batch"],
        lr=LR,
        lr_end=LR / 10,  # no default of its own; a constant schedule ignores it
        device="cpu",
        autocast=case["precision"] == "bfloat16",
    )
    trainer = SAETrainer(config, sae_class(config_class(**options)), iter(()))
    x = torch.randn(case["batch"], case["d"])

    def work() -> int:
        trainer.step(x)
        trainer.n_training_steps += 1
        return len(x)

    return work


def loader(case: Case) -> Work:
    """`batches` of `ActivationsStore` over its own cache; `buffer` rows are mixed, half
    of them kept back each time.
    """
    import torch
    from sae_lens.training.activations_store import ActivationsStore

    folder = Path(case["rows"]).with_suffix(".cache")
    if not folder.exists():
        write_cache(Path(case["rows"]), folder, case["d"], case["dtype"])
    store = ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=case["d"],
        # in sequences, whatever its name says
        n_batches_in_buffer=case["buffer"] // CONTEXT,
        total_training_tokens=10**10,
        store_batch_size_prompts=case["batch"] // CONTEXT,
        train_batch_size_tokens=case["batch"],
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype=case["dtype"],
        cached_activations_path=str(folder),
    )
    return lambda: sum(len(next(store)) for _ in range(case["batches"]))


def write_cache(rows: Path, folder: Path, d: int, dtype: str) -> None:
    """Rows [n, d] of a .npy file as `CacheActivationsRunner` writes them: sequences,
    with token ids.
    """
    import numpy as np
    from datasets import (
        Array2D,
        Dataset,
        Features,
        Sequence,
        Value,
        concatenate_datasets,
    )

    x = np.load(rows, mmap_mode="r").reshape(-1, CONTEXT, d)
    names = {
        HOOK: Array2D((CONTEXT, d), dtype),
        "token_ids": Sequence(Value("int32"), length=CONTEXT),
    }
    size = max(1, PART_BYTES // (CONTEXT * d * x.itemsize))
    parts = []
    for first in range(0, len(x), size):
        part = np.array(x[first : first + size])
        tokens = np.zeros((len(part), CONTEXT), np.int32)
        parts.append(
            Dataset.from_dict({HOOK: part, "token_ids": tokens}, Features(names))
        )
    concatenate_datasets(parts).save_to_disk(str(folder), num_shards=len(parts))


if __name__ == "__main__":
    serve("sae_lens", "sae-lens", prepare)
