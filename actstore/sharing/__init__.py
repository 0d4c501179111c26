"""Stores that others have too: copies between any two places, whole or in part."""
