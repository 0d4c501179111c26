"""A bounded folder on a local disk that keeps what was read from far away.

`LocalCache` is the public noun. It knows nothing of stores: what it keeps are bytes,
each under a digest that only these bytes can have, so that nothing in it is ever stale.
"""
