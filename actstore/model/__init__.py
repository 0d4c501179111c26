"""Puts a tap on a model: loads it, finds its sites, runs it."""
