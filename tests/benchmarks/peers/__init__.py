"""Other packages that our benchmarks are measured against, each in an environment of
its own.
"""
