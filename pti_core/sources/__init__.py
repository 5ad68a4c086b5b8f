"""Where images come from: files, tar and zip archives, Parquet. Each kind is listed and read in one module."""
