"""Edits of the images of a run: planned, made shard by shard, measured, shown."""
