"""Sparse arithmetic of TopK-like SAEs: selection, encoder and decoder whose cost goes
with the nonzeros.

`sparse` has what an architecture calls; `pattern` says where the nonzeros are; `select`
finds them; `eager` and `triton_sparse` are two implementations of the same two
products, chosen by name with `choice.using`.
"""
