"""Train one SAE on the mixture of all layers, evaluate it, and look at what fires."""

from __future__ import annotations

import torch

import actstore
import trainer

STORE = "example/store"
RUN = "example/topk"
SITE = "blocks.3.hook_mlp_out"


def main() -> None:
    # Nothing has to be tuned: scale, start and learning rate follow from the store.
    spec = {"store": STORE, "sae": {"kind": "topk", "k": 32}, "rows": "200k"}
    sae = trainer.train(spec, RUN)  # `trainer.load(RUN)` gives it again

    # On rows that were held out, for each layer and pooled over all of them.
    record = trainer.evaluate(RUN)
    for layer in (*record.layers, record.pooled):
        print(f"{layer.site:22} FVU {layer.fvu:.3f}  L0 {layer.l0:.1f}")

    # Original activations in, latents in original units out.
    store = actstore.open(STORE)
    rows = store.rows("held_out")[:1000]
    latents = sae.encode(torch.from_numpy(store.read(SITE, rows)), SITE)  # [1000, m]

    # The latent that fires most strongly, and the token that it fires on.
    strongest = int(latents.max(dim=0).values.argmax())
    row = rows[int(latents[:, strongest].argmax())]
    tokenizer = store.tokenizer()
    token = int(store.provenance([row]).token[0])
    print(f"latent {strongest} fires most on {tokenizer.decode([token])!r}")


if __name__ == "__main__":
    main()
