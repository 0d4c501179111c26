"""A writer and a reader of stores, made from `docs/FORMAT.md` and nothing else: no
import of the project.
"""
