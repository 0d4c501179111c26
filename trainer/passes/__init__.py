"""Trains the queue's runs, a pass at a time: what starts, keeps and ends processes."""
