"""The files of runs, on any file system of fsspec: layout, markers, manifests, and what is whole."""
