"""From a corpus to blocks of tokens: opening it, choosing its files, tokenising it."""
