"""The machine's memory, threads, signals, and speed in half precision."""
