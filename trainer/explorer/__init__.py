"""Shows every latent of a run: what it fires on, what it writes, what is near it."""
