"""Checks of what `deploy/` has, without a container engine: `make deploy-check`."""
