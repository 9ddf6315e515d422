"""What the engine costs, measured: `python -m benchmarks --help`. How it is done: docs/performance.md."""
