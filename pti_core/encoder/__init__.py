"""An encoder from an image to w, trained on a generator's own samples: where the search for the pivot may start."""
