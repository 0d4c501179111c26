"""What is asked of the machine: memory, threads, signals, speed of half precision."""
