"""Benchmarks: what a call costs, against the database's limit and the stack's. `make bench`."""
