"""From a model's name to a tap on it: loading it, finding its sites, running it."""
