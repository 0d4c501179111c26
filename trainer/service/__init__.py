"""The training service: a durable queue of runs, and what trains them."""
