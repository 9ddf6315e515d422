"""The same works on the system that a user would pick instead: `python -m benchmarks peers`."""
