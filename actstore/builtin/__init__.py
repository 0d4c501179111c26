"""The parts that ship with the package: a corpus of this machine, and two models."""
