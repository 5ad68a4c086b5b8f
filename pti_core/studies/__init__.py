"""Runs side by side: presets, settings and generators compared. Used by `scripts/` and `benchmarks/`."""
