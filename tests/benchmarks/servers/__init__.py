"""What benchmarks of object stores need: a slow line, and plain requests."""
