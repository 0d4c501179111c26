"""The arithmetic that SAEs share, sparse and dense.

It is the selection of the largest latents, and encoders and decoders whose cost goes
with the latents that are above 0.

* `sparse_products` has what a TopK-like architecture calls: `encode_top_k`, `decoded`.
* `topk_select` finds the largest pre-activations, `nonzeros` says where they are.
* `eager` and `triton_sparse` are two implementations of the same two products;
  `backend.using` chooses one of them by name.
* `dense_encoder` has the encoders of architectures that compute every latent.
* `select_across_processes` selects among the rows or latents of several processes.
"""
