"""Text from outside, on its way to a terminal."""

from __future__ import annotations

import re

# All but the tab and the end of a line: with the others a text can move the cursor, hide lines or fill the clipboard.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` with its control characters shown, as in `\\x1b`, for the terminal not to obey them."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
