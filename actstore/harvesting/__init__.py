"""Makes a store from a corpus and a model: the plan, the rows, the writer."""
