"""Many studies at once: finding them, working them off with Dask on one machine or many, and telling what came out."""
