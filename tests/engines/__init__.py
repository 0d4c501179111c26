"""Ray and Slurm, which place work on many machines."""
