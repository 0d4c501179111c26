"""Publishing stores and runs in a catalog, and removing what nobody needs."""
