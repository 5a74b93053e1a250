"""What only a GPU can tell, in under nine minutes and without network: see `benchmarks/gpu/__main__.py`."""
