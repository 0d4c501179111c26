"""The pages of the training service, made by the server."""
