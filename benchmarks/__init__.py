"""Benchmarks: cmgems beside what would be used instead, in one run on one machine. `make bench` runs all of them."""
