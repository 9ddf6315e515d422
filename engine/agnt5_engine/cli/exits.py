"""Exit codes of every command."""

FAILED, USAGE, NOT_FOUND, UNREACHABLE = 1, 2, 3, 4
