"""The start of a run: its config and its list of inputs, what was added later, and other runs of the same images."""
