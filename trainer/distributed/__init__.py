"""Training on several devices, one process each, started by torchrun.

`world` is how processes talk; `parallel` what a learner asks of them; `data` splits the
batch and `shards` the dictionary, whose forwards are in `steps`. With one process
nothing of this is loaded.
"""
