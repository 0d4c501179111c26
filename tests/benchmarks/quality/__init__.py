"""The quality of SAEs, ours against other packages' (README.md of the folder above)."""
