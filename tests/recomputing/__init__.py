"""Tests of what is computed again from a store."""
