"""Measurements with thresholds: `python -m benchmarks NAME`."""
