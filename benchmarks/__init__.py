"""Benchmarks: this project beside Ray, Dask and ProcessPoolExecutor, on one machine in one run."""
