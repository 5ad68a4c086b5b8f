"""What the engine gains over the plain method, measured: `make bench`."""
