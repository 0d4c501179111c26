"""Makes blocks of tokens of a corpus: opens it, chooses its files, tokenises it."""
