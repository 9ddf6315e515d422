"""The command `agnt5` (`root.py`): one module per noun. Nothing heavy is imported before a command needs it."""
