"""What ships with the package: a corpus that every machine has, and two models."""
