"""Computes again what a store says: norms and statistics from its values, and values
from the language model.
"""
