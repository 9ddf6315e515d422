"""`python -m agnt5_engine.cli` is `agnt5`."""

from agnt5_engine.cli.root import app

app()
