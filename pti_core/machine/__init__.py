"""The machine that a job runs on: its device, memory, cores, and how fast it multiplies matrices."""
