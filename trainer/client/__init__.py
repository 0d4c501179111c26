"""The client of the training service, and the commands that use it."""
