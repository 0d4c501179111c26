"""Getting SAEs out: SAELens folders, our own with a model card, and the hub."""
