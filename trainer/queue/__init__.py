"""The durable queue of the training service: runs, leases, and whose turn it is."""
