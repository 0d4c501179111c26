"""How good SAEs become, ours against other packages' (README.md of the folder above)."""
