"""A run's tables in a few large files, joined with what users know of their images."""
