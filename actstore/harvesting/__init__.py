"""From a corpus and a model to a store: the plan, the rows, the writer."""
