"""A writer and a reader of stores, made from `actstore/FORMAT.md` and nothing else: no import of the project."""
