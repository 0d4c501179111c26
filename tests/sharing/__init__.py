"""Tests of copies, cards and the hub."""
