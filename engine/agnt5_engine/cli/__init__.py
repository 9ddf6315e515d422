"""The command `agnt5`: one module per noun. Nothing heavy is imported before a command needs it."""

from agnt5_engine.cli.root import app

__all__ = ["app"]
