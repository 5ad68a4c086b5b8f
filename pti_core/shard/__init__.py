"""A shard's work, from its inputs to its marker."""
