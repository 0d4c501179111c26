"""Training in one process or in several, which torchrun starts on one device each.

`parallel_protocol` is what a learner asks of the processes. `single_process`,
`data_parallel` (parts of the batch) and `split_dictionary` (parts of the dictionary)
answer it, and `processes` is how several of them talk. With one process torch's own
distributed code is not loaded.
"""
