"""Activations that exist already become a store.

What a user names (`import_activations`) is found (`source_files`), opened (one module
for each format), matched to sites (`site_arrays`), read some sequences at a time
(`sequence_feed`) and written as the units of a store (`import_worker`).
"""
