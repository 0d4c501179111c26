"""What a store says is computed again: norms and statistics from its values, and values
from the language model.
"""
