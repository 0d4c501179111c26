"""EleutherAI's sparsify: its coder with the step of its trainer. Run by the Python of
that package's environment.

`Trainer.fit` needs a language model whose forward hooks train the coders; here the same
calls come in the same order without one: decoder norms, forward, backward, the logged
loss, parallel gradients removed, Adam, schedule, ages. Its default optimiser is Signum;
Adam is its choice that the others use too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# The peer's Python runs this file by its path, with its folder in `sys.path`.
if TYPE_CHECKING:
    from tests.benchmarks.peers.worker import Case, Work, serve
else:
    from worker import Case, Work, serve

LR, WARM_UP_STEPS = 2e-4, 1000


def prepare(case: Case) -> Work:
    import torch
    from sparsify import SparseCoder, SparseCoderConfig
    from transformers import get_linear_schedule_with_warmup

    config = SparseCoderConfig(
        activation=case["kind"], num_latents=case["latents"], k=case["k"]
    )
    coder = SparseCoder(case["d"], config, "cpu", torch.float32)
    optimiser = torch.optim.Adam(
        coder.parameters(), LR / (coder.num_latents / 2**14) ** 0.5
    )
    schedule = get_linear_schedule_with_warmup(optimiser, WARM_UP_STEPS, 10**6)
    silent = torch.zeros(coder.num_latents, dtype=torch.long)
    fired = torch.zeros(coder.num_latents, dtype=torch.bool)
    low = case["precision"] == "bfloat16"
    x = torch.randn(case["batch"], case["d"])
    coder.b_dec.data = x.mean(0)

    def work() -> int:
        coder.set_decoder_norm_to_unit_norm()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = coder(x, x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        with torch.no_grad():
            silent.add_(len(x))
            silent[fired] = 0
            fired.zero_()
        return len(x)

    return work


if __name__ == "__main__":
    serve("sparsify", "eai-sparsify", prepare)
