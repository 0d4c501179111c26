"""What places work on many machines: Ray and Slurm. It knows nothing of the work."""
