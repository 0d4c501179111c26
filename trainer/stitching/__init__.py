"""Compares SAEs of different sizes, and stitches them together."""
