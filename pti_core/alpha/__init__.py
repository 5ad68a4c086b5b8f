"""The alpha study: what the distance of the locality regulariser does, on the user's own generator and images."""
